"""Errors of the functions for Python programs: misspelled keywords, and flags written as keywords."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from trainyard.config.aliases import UnknownField, alias_for
from trainyard.errors import UserError, one_line

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_WORD = r"""(?:\$'(?:[^'\\]|\\.)*'|'[^']*'|"[^"]*"|[^\s'"`;,()])+"""
_FLAG = re.compile(rf"`[^-`][^`]*`|(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])(?:[ =](?!--)({_WORD}))?")
_PROSE = {"and", "as", "for", "has", "here", "in", "is", "it", "names", "needs", "of", "or", "sets",
          "to", "with"}  # fmt: skip
"""Words after a flag that are not its value, even at the end of a clause."""


_NAMING_FLAGS: ContextVar[bool] = ContextVar("naming_flags", default=False)


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
    """Make errors inside the block name settings as flags of a command, not as keywords of Python."""
    before = _NAMING_FLAGS.set(True)
    try:
        yield
    finally:
        _NAMING_FLAGS.reset(before)


@contextlib.contextmanager
def naming_keywords(
    kinds: Callable[[], Mapping[str, Any]], renamed: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Make errors inside the block name settings as keywords, except within `naming_flags`.

    Args:
        kinds: Function that returns the types of the fields, by name.
        renamed: Keywords by the field of the command's config, where their names differ.
    """
    try:
        yield
    except UserError as error:
        if not _NAMING_FLAGS.get():
            error.problem, error.remedy = (
                as_keywords(text, kinds(), renamed) for text in (error.problem, error.remedy)
            )
        raise


def python_function(
    options: Callable[[], Iterable[str]] = tuple,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Build a decorator for the functions that Python programs call.

    Unknown keywords are refused with a suggestion; a keyword of the function's config gets the call
    that passes it in the config. Errors name settings as keywords, not as flags.

    Args:
        options: Function that returns the names that `**` of the function accepts.
        renamed: See `naming_keywords`.

    Raises:
        UnknownField: A keyword of a call is unknown.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def checked(*args: Parameters.args, **given: Parameters.kwargs) -> Result:
            parameters = inspect.signature(function).parameters.values()
            names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
            if unknown := given.keys() - {*names, *options()}:
                raise UnknownField(_sentence(function, min(unknown), [*names, *options()]))
            expected = get_type_hints(function).get("config")
            config = args[0] if args else given.get("config")
            if expected and config is not None and not isinstance(config, expected):
                article = "an" if expected.__name__[0] in "AEIOU" else "a"
                raise UserError(
                    f"{function.__name__} takes {article} {expected.__name__}, but got "
                    f"{one_line(repr(config), 60)}; call {function.__name__}({example(expected)})"
                )
            with naming_keywords(functools.partial(_kinds_of, function, options), renamed):
                return function(*args, **given)

        return checked

    return decorate


def example(config: type[Any]) -> str:
    """Return a call of the config with its most usual field: `TrainConfig(train_file=…)`."""
    names = [field.name for field in dataclasses.fields(config)]
    usual = [name for name in ("train_file", "model_name_or_path") if name in names]
    return f"{config.__name__}({[*usual, *names][0]}=…)"


def _kinds_of(function: Callable[..., Any], options: Callable[[], Iterable[str]]) -> dict[str, Any]:
    """Return the types of the keywords of a function, and of the fields of its config."""
    hints = get_type_hints(function)
    fields = get_type_hints(hints["config"]) if "config" in hints else {}
    return {**dict.fromkeys(options(), str), **hints, **fields}


def as_keywords(
    sentence: str, kinds: Mapping[str, Any], renamed: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Write flags in a sentence as keywords: `--seed 1 --fresh` becomes `seed=1, fresh=True`.

    A flag becomes its name alone if the next word is not recognized as a value.

    Args:
        sentence: Error sentence.
        kinds: Types of the fields, by name. Flags of other programs stay as they are.
        renamed: See `naming_keywords`.
    """

    def keyword(match: re.Match[str]) -> str:
        if match[1] is None:  # a command line in backticks
            return match[0]
        name, word = match[1].replace("-", "_"), match[2] or ""
        name = renamed.get(name, name)
        rest = match.string[match.end() :]
        comma = "," if rest.startswith(" --") else ""
        wanted = name.removeprefix("no_")
        if bool in _kinds(kinds.get(wanted)) and word != "is":
            return f"{wanted}={name == wanted}{f' {word}' if word else comma}"
        if name not in kinds:
            return match[0]
        text = word.rstrip(":?")
        ends = not rest or rest.startswith((" --", ";", ", ", ")"))
        value = _value(text, kinds[name], ends=ends)
        if value is None:
            return f"{name}{match[0][2 + len(match[1]) :]}"
        return f"{name}={value}{word[len(text) :]}{comma}"

    return _FLAG.sub(keyword, sentence)


def _value(word: str, kind: Any, *, ends: bool) -> str | None:
    """Return a word as Python writes a value of this type; None for a word of the sentence."""
    if not word:
        return None
    kinds = _kinds(kind)
    if {int, float} & kinds and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word):
        return word
    placeholder = word[:2].isupper()
    if not kinds & {str, tuple}:
        return word if placeholder and kinds & {int, float} else None
    quoted = word[0] in "'$"
    if not (quoted or placeholder or word in kinds or (ends and word not in _PROSE)):
        return None
    try:
        text = ast.literal_eval(word[1:]) if word[0] == "$" else "".join(shlex.split(word))
    except (ValueError, SyntaxError):
        return None
    return repr((text,) if tuple in kinds else text)


def _kinds(kind: Any) -> set[Any]:
    """Return the plain types of a type, and its choices; `tuple` stands for a list."""
    if get_origin(kind) is Literal:
        return {*map(type, get_args(kind)), *get_args(kind)}
    if isinstance(kind, type) and not get_args(kind):
        return {kind}
    if get_origin(kind) is tuple:
        return {tuple}
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return set()
    return {found for part in get_args(kind) for found in _kinds(part)}


def _sentence(function: Callable[..., Any], name: str, names: list[str]) -> str:
    wrong = f"{function.__name__} has no argument '{name}'"
    config = get_type_hints(function).get("config")
    fields = [field.name for field in dataclasses.fields(config)] if config else []
    if close := difflib.get_close_matches(name, [*fields, *names], n=1):
        meant = close[0]
    elif name in fields or (config and alias_for(name, fields)):
        meant = name
    else:
        return f"{wrong}; it has {', '.join(names)}"
    if config is None or meant in names:
        return f"{wrong}; did you mean '{meant}'?"
    call = f"{function.__name__}({config.__name__}({meant}=…))"
    if meant == name:
        return f"{wrong}; give it to the config: {call}"
    return f"{wrong}; did you mean {call}?"
