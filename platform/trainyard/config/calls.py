"""Errors for misspelled keywords of the functions for Python programs."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, get_type_hints

from trainyard.config.aliases import UnknownField, alias_for

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def checked_keywords(
    options: Callable[[], Iterable[str]] = tuple,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Build a decorator that refuses unknown keywords with a suggestion.

    A keyword of the function's config gets the call that passes it in the config.

    Args:
        options: Function that returns the names that `**` of the function accepts.

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
            return function(*args, **given)

        return checked

    return decorate


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
