"""The language rules of the design that a machine can check: docstrings, comments, flags, errors."""

import ast
import importlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "trainyard"

PARTS = sorted(
    path.stem if path.is_file() else path.name
    for path in PACKAGE.iterdir()
    if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    if path.name != "__init__.py"
)
"""Packages and root modules."""

QUESTIONS = re.compile(r"(What|Whether|How|Where|Which|Who|Whoever|Why|So many|Of an?)\b")
BANNED = re.compile(
    r"\b(mend(s|ed|ing)?|for ever|nobody|whoever|so many|as many as|so long as it|goes on|gone on|"
    r"go on|went on|of its own|of their own|by itself|by themselves|luck|to the bit|grave|told|"
    r"any more than|besides?|who comes|judged)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.;:?!])\s+")
STRINGS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
GLOSSARY = re.compile(
    r"(^|_)(slots?|tickets?|shield(s|ed)?|watch(es|ed)?|wired?|told|asked|judged?|graves?|luck|mend(s|ed|ing)?)(_|$)"
)
"""Words that names of the code do not use: the design's glossary has others for them."""

LONGEST_SENTENCE = 25
"""Words in a sentence of a docstring or of a flag's help."""


def files_of(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those under assignments included."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text.strip()


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment and every string that reads as a sentence."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        sentence = token.type in STRINGS and token.string.count(" ") >= 3
        if sentence or token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("part", PARTS)
def test_docstrings_start_with_a_verb_or_a_noun(part: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} {text[:60]}"
        for path in files_of(part)
        for line, text in docstrings(ast.parse(path.read_text()))
        if QUESTIONS.match(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", PARTS)
def test_banned_words_do_not_occur(part: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} {found.group(0)}: {text.strip()[:80]}"
        for path in files_of(part)
        for line, text in prose(path.read_text())
        if (found := BANNED.search(text))
    ]
    assert not wrong, "\n".join(wrong)


def sentences(docstring: str) -> Iterator[str]:
    """Sentences of a docstring, without its indented blocks: listings, formulas, examples."""
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        if not paragraph.startswith("    "):
            prose = re.split(r"\n +(?=`?\w+`?: )", paragraph)  # an entry of Args or Attributes
            yield from (s for part in prose for s in SENTENCE_END.split(" ".join(part.split())))


@pytest.mark.parametrize("part", PARTS)
def test_docstrings_are_in_short_sentences(part: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} {sentence}"
        for path in files_of(part)
        for line, text in docstrings(ast.parse(path.read_text()))
        for sentence in sentences(text)
        if len(sentence.split()) > LONGEST_SENTENCE
    ]
    assert not wrong, "\n".join(wrong)


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name, in snake case, of everything that a module binds."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ClassDef(name=name):
                yield node.lineno, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name.lower()
            case ast.arg(arg=name):
                yield node.lineno, name


@pytest.mark.parametrize("part", PARTS)
def test_names_follow_the_glossary(part: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in files_of(part)
        for line, name in names(ast.parse(path.read_text()))
        if GLOSSARY.search(name)
    ]
    assert not wrong, "\n".join(wrong)


def flags(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and help of the fields of the configs: dataclasses whose name ends so."""
    for node in tree.body:
        if not (
            isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Flags", "Options"))
        ):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=help)
                ):
                    yield name, str(help)


@pytest.mark.parametrize("part", PARTS)
def test_percentages_are_written_with_a_space(part: str) -> None:
    """As in `29 %`; the format `%` of Python writes `29%`."""
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in files_of(part)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r":[\d.]*%\}|\d\}%", line)
    ]
    assert not found


@pytest.mark.parametrize("part", PARTS)
def test_help_of_flags_is_in_short_sentences(part: str) -> None:
    for path in files_of(part):
        for name, text in flags(ast.parse(path.read_text())):
            for sentence in SENTENCE_END.split(" ".join(text.split())):
                words = len(sentence.split())
                assert words <= LONGEST_SENTENCE, f"{path.name}: {name}: {words} words: {sentence}"


@pytest.mark.parametrize("part", [p for p in PARTS if (PACKAGE / p).is_dir()])
def test_the_public_surface_is_documented(part: str) -> None:
    for stub in (PACKAGE / part).rglob("__init__.pyi"):
        package = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
        face = importlib.import_module(package)
        for name in face.__all__:
            found = getattr(face, name)
            if callable(found) and getattr(found, "__module__", "").startswith("trainyard"):
                assert found.__doc__, f"{package}.{name} has no docstring"
