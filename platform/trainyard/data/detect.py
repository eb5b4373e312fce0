"""Detect the format and the columns of a file: for `trainyard init`, and for errors of other jobs."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.config import DataFlags, FileFlags, flag
from trainyard.data.columns import (
    AS_JSON,
    TextFormat,
    UnfitSettings,
    closest,
    did_you_mean,
    listing,
)
from trainyard.data.files import check_file, read_rows
from trainyard.data.labels import is_label_list
from trainyard.data.text_files import (
    DELIMITERS,
    MARKS,
    SEPARATORS,
    conversion,
    first_line,
    undecodable_line,
)
from trainyard.data.trained_columns import LABEL, TEXT
from trainyard.errors import UserError

SAMPLE = 2000
"""Maximum number of rows from which the columns are guessed."""

TEXTS = ("text", "sentence", "sentence1", "body", "content", "review", "message", "comment",
         "question", "premise", "description", "title")  # fmt: skip
SECOND_TEXTS = {"sentence1": "sentence2", "question": "answer", "premise": "hypothesis",
                "question1": "question2", "text_a": "text_b", "text": "text_pair"}  # fmt: skip
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "tag", "tags", "intent",
          "topic", "rating", "score")  # fmt: skip
"""Usual column names, likeliest first; SECOND_TEXTS maps the first text column to the second."""

FEW_CLASSES, MANY_CLASSES = 20, 500
"""Maximum numbers of distinct integers that are class ids: in any file, and if each has two rows on
average. More are regression targets."""

SENTENCE = 3
"""Words from which the name of a text column may be a text."""
_TEXT_FILES = (*DELIMITERS, ".json", ".jsonl")
"""Endings of the names of files that have an encoding."""
_UNMARKED = ("utf-8", "cp1252")
"""Encodings to try on a file without a byte order mark; latin-1 decodes the rest."""
_CHARACTERS = 1 << 20
"""Characters decoded at once, so that large files need little memory."""
_PLAIN_WORD = re.compile(r"[\w./@+-]+")

Sample = dict[str, list[Any]]
"""Values of the first rows by column."""


@dataclass(frozen=True)
class Guess:
    """Guessed columns, problem type and text format of a file; None keeps the default."""

    text: str
    pair: str | None
    label: str
    problem_type: str | None
    encoding: str
    delimiter: str | None
    longest: int
    """Characters per row, 99th percentile; both texts of a pair count."""

    def fields(self) -> dict[str, Any]:
        """Return the guesses as fields of a training config, without those at their defaults."""
        found = {
            "text_column": self.text,
            "text_pair_column": self.pair,
            "label_column": self.label,
            "problem_type": self.problem_type,
            "delimiter": self.delimiter,
            "encoding": self.encoding,
        }
        usual = {**{name: getattr(DataFlags, name) for name in found}, "text_column": TEXT}
        return {name: value for name, value in found.items() if value != usual[name]}


def guess_columns(path: Path, text: str | None = None, label: str | None = None) -> Guess:
    """Guess the columns of a file by their names, else by their contents.

    Without a usual name, the label is the column with the fewest distinct values, at least two. The
    text is then the column with the most characters.

    Args:
        path: File of texts and labels.
        text: Column of the text; None guesses it.
        label: Column of the label; None guesses it.

    Raises:
        UserError: The file cannot be read, lacks a given column, or has a row as its first line. Or
            no column holds texts, or none is left for the label.
    """
    text_format = _text_format(path, TextFormat())
    columns = _sample(path, text_format)
    _check_columns(path, columns, text_column=text, label_column=label)
    guessed, named = label is None, text is not None
    likely = _likely(columns, None, None)[1]
    if guessed and text is not None and text == likely and _is_usual(text, LABELS):
        raise UserError(
            f"--text-column {text!r} is the label column of {path.name}, too; name another column of "
            "texts, or that of the labels with --label-column"
        )
    text, label = _likely(columns, text, label)
    if text is None or label is None:
        listed = ", ".join(map(repr, columns))
        raise UserError(
            f"{path} has the columns {listed}; expected one of texts and one of labels with at least "
            "two values; name them with --text-column and --label-column"
        )
    if guessed and not named:
        _check_header(path, columns, text, label, text_format)
    pair = _second_text(columns, text)
    lengths = sorted(
        sum(len(str(columns[name][row])) for name in (text, pair) if name)
        for row in range(len(columns[text]))
    )
    return Guess(
        text,
        pair,
        label,
        _problem_type(columns[label]),
        text_format.encoding,
        text_format.delimiter,
        lengths[int(0.99 * (len(lengths) - 1))],
    )


@contextmanager
def naming_settings(
    config: FileFlags, files: Sequence[Path], texts: Sequence[str], label: str | None
) -> Iterator[None]:
    """Add to an error about the format or the columns of `files` all settings that they need.

    The settings are guessed by the rules of `guess_columns`. They are named, not applied, since a
    run is a function of its config. If no settings fit all files, the error names a file to change.

    Args:
        config: Flags of the job.
        files: Files that the job reads, in order. If settings are missing, they are those of the
            first file.
        texts: Text columns that the job reads.
        label: Label column that the job reads; None without labels.

    Raises:
        UserError: The error, with the flags to add or the file to change.
    """
    try:
        yield
    except UnfitSettings as error:
        try:
            advised = _advised(error, config, files, texts, label)
        except _HeaderMissingError as fault:
            advised = fault
        except UserError:  # a file has further faults; the first one is reported
            raise error from None
        if advised is error:
            raise
        raise advised from None


def _advised(
    error: UnfitSettings,
    config: FileFlags,
    files: Sequence[Path],
    texts: Sequence[str],
    label: str | None,
) -> UserError:
    given = TextFormat(config.delimiter, config.encoding)
    names = texts if label is None else (*texts, label)
    if given.encoding == TextFormat().encoding and (conflict := _encoding_conflict(files)):
        return conflict
    if conflict := _delimiter_conflict(files, given, names):
        return conflict
    if found := _missing(config, files[0], texts, label):
        flags = " ".join(f"{flag(name)} {shell_word(value)}" for name, value in found.items())
        return error.with_settings(flags, list(found.values()))
    for path in files[1:]:
        if lacking := _lacking(path, files[0], given, names):
            return UserError(
                error.problem,
                remedy=f"all files need the columns {lacking} of {files[0].name}: add or rename them "
                f"in {path.name}",
            )
    return error


def _encoding_conflict(files: Sequence[Path]) -> UserError | None:
    """Build the error for files that no encoding decodes together; None if one does."""
    found = {path: _encoding(path) for path in files if path.suffix.lower() in _TEXT_FILES}
    odd = next((path for path in found if found[path] != TextFormat().encoding), None)
    if odd is None:
        return None
    for path, encoding in found.items():
        plain = not found[odd].startswith("utf-") and _decodes(path, "ascii")
        if encoding != found[odd] and not plain:
            return UserError(
                undecodable_line(odd),
                remedy=f"--encoding holds for all files, and {path.name} is {encoding}: convert "
                f"{odd.name} with {conversion(odd, found[odd])}",
            )
    return None


def _delimiter_conflict(
    files: Sequence[Path], given: TextFormat, names: Sequence[str]
) -> UserError | None:
    """Build the error for files that no delimiter separates together; None if one does."""
    found: dict[Path, str] = {}
    for path in files:
        if usual := DELIMITERS.get(path.suffix.lower()):
            text_format = _text_format(path, given)
            mark = text_format.delimiter or usual
            if mark in first_line(path, text_format.encoding):  # else the file has one column
                found[path] = mark
    if all(mark == DELIMITERS[path.suffix.lower()] for path, mark in found.items()):
        return None
    first, *others = found
    for path in others:
        if found[path] != found[first]:
            lacking = _lacking(path, first, given, names)
            alike = f", with the columns {lacking}" if lacking else ""
            return UserError(
                f"{path.name} is separated by {found[path]!r}, but {first.name} by {found[first]!r}",
                remedy=f"--delimiter holds for all files: save {path.name} like {first.name}{alike}",
            )
    return None


def _lacking(path: Path, first: Path, given: TextFormat, names: Sequence[str]) -> str:
    """List those of `names`, all columns of the file `first`, if `path` lacks one; else ""."""
    columns, others = (_sample(each, _text_format(each, given)) for each in (first, path))
    if all(name in columns for name in names) and not all(name in others for name in names):
        return listing(map(repr, names))
    return ""


def shell_word(text: str) -> str:
    """Quote a text as a word of a command line, on one line."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    if text.isprintable():
        return shlex.quote(text) if "'" in text else f"'{text}'"
    # With a double quote in it, Python always writes single quotes around a text.
    return "$'" + repr(f'"{text}')[2:]


def _missing(
    config: FileFlags, file: Path, texts: Sequence[str], label: str | None
) -> dict[str, str]:
    """Return settings that `file` needs, by field of `config`; empty if they are not the fault."""
    given = TextFormat(config.delimiter, config.encoding)
    text_format = _text_format(file, given)
    columns = _sample(file, text_format)
    usual = DELIMITERS.get(file.suffix.lower())
    guessed: dict[str, tuple[str | None, str | None]] = {
        "encoding": (given.encoding, text_format.encoding),
        "delimiter": (given.delimiter or usual, text_format.delimiter or usual),
    }
    text = _meant(texts[0], TEXT, columns)
    kind = None
    if label is None:
        text, _ = _likely(columns, text, None, labeled=False)
    else:
        text, likely = _likely(columns, text, _meant(label, LABEL, columns))
        guessed["label_column"] = (label, likely)
        kind = likely and _problem_type(columns[likely])
    guessed["text_column"] = (texts[0], text)
    pair = text and _second_text(columns, text)
    if len(texts) > 1:
        guessed["text_pair_column"] = (texts[1], _meant(texts[1], "", columns) or pair)
    if any(meant is None for now, meant in guessed.values() if now is not None):
        return {}
    likely = guessed.get("label_column", (None, None))[1]
    if text and likely and likely != label:
        _check_header(file, columns, text, likely, text_format)
    changed = {name: meant for name, (now, meant) in guessed.items() if meant and meant != now}
    if not changed:
        return {}
    if isinstance(config, DataFlags):
        if pair and config.text_column is None and len(texts) == 1:
            changed["text_pair_column"] = pair
        if kind and config.problem_type is None:
            changed["problem_type"] = kind
    order = ("encoding", "delimiter", "text_column", "text_pair_column", "label_column",
             "problem_type")  # fmt: skip
    return {name: changed[name] for name in order if name in changed}


def _meant(name: str, default: str, columns: Sample) -> str | None:
    """Return the column that `name` means; None if only a guess can tell."""
    if name in columns:
        return name
    return None if name == default else closest(name, list(columns))


def _check_columns(path: Path, columns: Sample, **given: str | None) -> None:
    for field, name in given.items():
        if name is not None and name not in columns:
            raise UserError(
                f"{flag(field)} is {name!r}, but the columns of {path} are "
                f"{listing(map(repr, columns))}{did_you_mean(name, list(columns))}; give one of them"
            )


class _HeaderMissingError(UserError):
    """The first line of the file looks like a row."""


def _check_header(
    path: Path, columns: Sample, text: str, label: str, text_format: TextFormat
) -> None:
    """Refuse a file whose first line looks like a row, to judge by the guessed label column.

    It does if the label column is named like a label below, or is a column of numbers named by a
    number. Usual names, and a text column whose name has less than SENTENCE words, are a header.

    Raises:
        _HeaderMissingError: The first line looks like a row.
    """
    named = _is_usual(text, TEXTS) or _is_usual(label, LABELS) or len(text.split()) < SENTENCE
    if named or path.suffix.lower() not in DELIMITERS:
        return
    values = [str(value) for value in columns[label] if value is not None]
    names = {name.strip() for value in values for name in (value, *value.split("|"))}
    if label.strip() not in names and not all(map(_is_number, (label, *values))):
        return
    mark = text_format.delimiter or DELIMITERS[path.suffix.lower()]
    header = ("<TAB>" if mark == "\t" else mark).join(
        {text: "text", label: "label"}.get(name, f"column{index}")
        for index, name in enumerate(columns, 1)
    )
    raise _HeaderMissingError(
        f"{path.name} seems to have no header line: {label!r} in the first line looks like a label; "
        f"add a first line such as {header}, or name the columns with --text-column and "
        "--label-column"
    )


def _is_usual(name: str, names: Sequence[str]) -> bool:
    return name.strip().lower() in names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _likely(
    columns: Sample, text: str | None, label: str | None, *, labeled: bool = True
) -> tuple[str | None, str | None]:
    """Return the columns of the text and of the label: as given, else the likeliest ones."""
    names = {name.strip().lower(): name for name in columns}
    texts = [name for name in columns if any(isinstance(value, str) for value in columns[name])]
    if labeled:
        label = label or next((names[n] for n in LABELS if names.get(n, text) != text), None)
    text = text or next((names[n] for n in TEXTS if names.get(n, label) != label), None)
    if labeled and label is None:
        rest = [name for name in reversed(columns) if name != text]  # the label is rarely the first
        counts = {name: _distinct(columns[name]) for name in rest}
        label = min((name for name in rest if counts[name] > 1), key=counts.get, default=None)  # type: ignore[arg-type]
    if text is None:
        rest = [name for name in texts if name != label]
        text = max(rest, key=lambda name: _length(columns[name]), default=None)
    return text, label


def _second_text(columns: Sample, text: str) -> str | None:
    names = {name.strip().lower(): name for name in columns}
    return names.get(SECOND_TEXTS.get(text.strip().lower(), ""))


def _distinct(values: Sequence[Any]) -> int:
    return len({str(value) for value in values if value not in (None, "")})


def _length(values: Sequence[Any]) -> int:
    return sum(len(str(value)) for value in values)


def _problem_type(values: Sequence[Any]) -> str | None:
    if any(map(is_label_list, values)):
        return "multi_label_classification"
    try:
        numbers = {float(value) for value in values}
    except (TypeError, ValueError):
        return None
    whole = all(number.is_integer() for number in numbers)
    most = FEW_CLASSES if len(numbers) > len(values) / 2 else MANY_CLASSES
    return None if whole and len(numbers) <= most else "regression"


def _sample(path: Path, text_format: TextFormat) -> dict[str, list[Any]]:
    """Read the first rows of a file, at most SAMPLE."""
    batches = read_rows(
        path, (), None, "single_label_classification", text_format=text_format, others=None
    )
    rows = next(batches).others.slice(0, SAMPLE)  # type: ignore[union-attr]
    return {
        field.name: [
            json.loads(value) if field.metadata == AS_JSON and value is not None else value
            for value in rows[field.name].to_pylist()
        ]
        for field in rows.schema
    }


def _text_format(path: Path, given: TextFormat) -> TextFormat:
    """Detect the delimiter and the encoding of a file; None is the default delimiter of its kind.

    An encoding other than UTF-8 is kept as given, and so is a delimiter that the first line has.

    Raises:
        UserError: The file cannot be read, or starts with a line that only Excel reads.
    """
    check_file(path)
    kind = path.suffix.lower()
    if kind not in _TEXT_FILES:
        return given
    encoding = given.encoding if given.encoding != TextFormat().encoding else _encoding(path)
    if kind not in DELIMITERS:
        return TextFormat(given.delimiter, encoding)
    head = first_line(path, encoding)
    if head.startswith("sep="):
        raise UserError(
            f"{path} starts with the line {head.strip()}, which only Excel reads; remove this line, and "
            "init finds the separator"
        )
    if given.delimiter and given.delimiter in head:
        return TextFormat(given.delimiter, encoding)
    head = re.sub('"[^"]*"', "", head)  # a quoted name may contain any of them
    delimiter = max((DELIMITERS[kind], *SEPARATORS), key=head.count)
    return TextFormat(None if delimiter == DELIMITERS[kind] else delimiter, encoding)


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(max(map(len, MARKS)))
    marked = [name.lower() for mark, name in MARKS.items() if start.startswith(mark)]
    return next((name for name in marked[:1] or _UNMARKED if _decodes(path, name)), "latin-1")


def _decodes(path: Path, encoding: str) -> bool:
    try:
        with path.open(encoding=encoding) as text:
            while text.read(_CHARACTERS):
                pass
    except UnicodeError:
        return False
    return True
