"""Checks of the values of config fields: their types, choices and ranges.

The flag parser checks the types of a command line's values; these checks are for Python programs.
"""

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping
from math import inf, isfinite
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trainyard.config.aliases import flag
from trainyard.errors import UserError

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "max_length", "num_train_epochs", "max_steps", "train_batch_size", "eval_steps",
            "per_device_train_batch_size", "per_device_train_tokens", "per_device_eval_batch_size",
            "save_steps", "early_stopping_patience", "logging_steps", "pad_to_multiple_of",
            "max_train_samples", "num_trials", "grace_period", "max_concurrent_trials", "confirm_top",
            "num_rows", "threads", "batch_tokens", "max_parallel_workers",
        ),
        (1, inf),
    ),
    "population": (2, inf),
    **dict.fromkeys(
        ("weight_decay", "warmup_steps", "max_grad_norm", "max_failures", "num_errors", "num_examples",
         "confirm_seeds"),
        (0, inf),
    ),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32)),
}  # fmt: skip
"""Range of each numeric field: inclusive minimum and exclusive maximum."""

_WORDS = {bool: "True or False", int: "an integer", float: "a number"}


def check_fields(config: Any) -> None:
    """Check types, choices and ranges of all fields of a config; a text may only not be empty.

    Raises:
        UserError: A value does not fit the type of its field, or is outside its range.
    """
    found: Any = type(config)
    kinds = _kinds(found)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == "":
            raise UserError(f"{flag(field.name)} is empty; give a value, or leave it out")
        check_value(field.name, value, kinds[field.name])
        if value is not None and field.name in RANGES:
            _check_range(field.name, value)


@functools.cache
def _kinds(config: type[Any]) -> dict[str, Any]:
    return get_type_hints(config)


def check_value(name: str, value: Any, kind: Any) -> None:
    """Check the type and the choices of one field; texts are not checked.

    Raises:
        UserError: `value` does not fit the type `kind`.
    """
    if not _fits(value, kind):
        raise UserError(f"{flag(name)} {mismatch(value, kind)}")


def mismatch(value: Any, kind: Any) -> str:
    """Return a clause about a value that does not fit a type: `is 'a'; it must be an integer`."""
    expected = " or ".join(_expected(kind))
    parts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    close = [
        match
        for part in parts
        if isinstance(part, str)
        for match in difflib.get_close_matches(part, _choices(kind), n=1)
        if match != part
    ]
    if close:
        remedy = f"; did you mean {close[0]!r}?"
    elif isinstance(value, str) and get_origin(kind) is tuple:
        remedy = f", such as [{value!r}]"
    else:
        remedy = ", not a text" if isinstance(value, str) and not _choices(kind) else ""
    return f"is {value!r}; it must be {expected}{remedy}"


def _fits(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    match get_origin(kind):
        case origin if origin in (Union, UnionType):
            return any(_fits(value, part) for part in parts)
        case origin if origin is Literal:
            return any(isinstance(value, type(one)) and value == one for one in parts)
        case origin if origin is tuple:
            return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
        case origin if origin in (dict, Mapping):
            return isinstance(value, Mapping) and all(_fits(v, parts[1]) for v in value.values())
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return True


def _expected(kind: Any) -> Iterator[str]:
    """Yield phrases that describe the values of a type, for an error sentence."""
    parts = get_args(kind)
    match get_origin(kind):
        case origin if origin in (Union, UnionType):
            for part in parts:
                yield from _expected(part)
        case origin if origin is Literal:
            yield from (
                map(str, parts)
                if len(parts) < 3
                else (
                    ", ".join(map(str, parts[:-1])),
                    str(parts[-1]),
                )
            )
        case origin if origin is tuple:
            inner = " or ".join(_expected(parts[0]))
            yield f"a list of {inner}" if inner else "a list"
        case origin if origin in (dict, Mapping):
            yield "a mapping from names to numbers" if parts[1] is float else "a mapping"
        case _:
            if kind in _WORDS:
                yield _WORDS[kind]


def _choices(kind: Any) -> list[str]:
    """Return the texts that a type lists as its choices, also inside unions and lists."""
    if get_origin(kind) is Literal:
        return [one for one in get_args(kind) if isinstance(one, str)]
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _check_range(name: str, value: Any) -> None:
    low, end = RANGES[name]
    if not low <= value < end:
        above = f"at least {low}" if isfinite(value) else f"a finite number, at least {low}"
        expected = above if end == inf else f"between {low} and {end - 1}"
        raise UserError(f"{flag(name)} is {value}; it must be {expected}")
