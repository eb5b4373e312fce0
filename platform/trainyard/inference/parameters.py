"""Validation of requests: inputs, and parameters with a frozen dataclass per task and pydantic.

A field and its docstring in the dataclass of `tasks/<task>.py` define a parameter of the HTTP
interface. The same dataclasses give the OpenAPI schemas, see `json_schema`.
"""

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

from trainyard.errors import UserError

_STRICT = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class Strict:
    """Base of JSON types. Pydantic converts no value and refuses unknown fields.

    Field docstrings become descriptions in the published schema.
    """

    __pydantic_config__ = _STRICT  # an annotation would make it a field


Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
"""Treatment of texts that are too long: an error (False), truncation (True), or a strategy."""

Parameters = TypeVar("Parameters")


def check_parameters(
    cls: type[Parameters], given: Mapping[str, Any] | None, task: str
) -> Parameters:
    """Build `cls` from the `parameters` of a request for `task`.

    Raises:
        UserError: A parameter is unknown, missing or invalid; suggests the nearest name.
    """
    import pydantic

    try:
        text = json.dumps(dict(given or {}), allow_nan=False)
        hashable: Any = cls
        checked: Parameters = _adapter(hashable).validate_json(text)
        return checked
    except pydantic.ValidationError as error:
        raise UserError(_sentence(error.errors(include_url=False)[0], cls, task)) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"parameters must be a JSON object of finite values: {error}") from error


def json_schema(cls: Any, **options: Any) -> dict[str, Any]:
    """Build the JSON schema of a parameters class; field docstrings become descriptions.

    Pydantic reads only docstrings in the class itself, so this adds the docstrings of its bases.
    `options` are those of pydantic's `TypeAdapter.json_schema`.
    """
    schema: dict[str, Any] = _adapter(cls).json_schema(**options)
    for base in cls.__mro__[1:]:
        if is_dataclass(base):
            known: Any = base  # for mypy, dataclasses are not hashable
            for name, field in _adapter(known).json_schema()["properties"].items():
                if "description" in field:
                    schema["properties"][name].setdefault("description", field["description"])
    return schema


@functools.cache
def _adapter(cls: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(cls)


def _sentence(fault: Mapping[str, Any], cls: type[Any], task: str) -> str:
    place = ".".join(["parameters", *map(str, fault["loc"][:1])])
    names = [field.name for field in fields(cls)]
    if fault["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(str(fault["loc"][0]), names, n=1)
        hint = f"did you mean {near[0]}? It knows" if near else "it knows"
        return f"{place} is not a parameter of {task}; {hint} {', '.join(names)}"
    if fault["type"] == "missing":
        return f"{place} is missing; {task} requires it"
    return f"{place} is {_shown(fault['input'])}: {str(fault['msg'])[0].lower()}{str(fault['msg'])[1:]}"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else f"{shown[:57]}..."


def text_of(value: Any, place: str = "inputs") -> str:
    """Return `value` if it is a valid Unicode string; `place` names it in errors.

    Raises:
        UserError: `value` is not a string, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise UserError(f"{place} must be a text, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} is not valid Unicode: character {error.start} is half of a surrogate pair"
        ) from None
    return value


def fields_of(value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return `value` if it is an object with all `required` and no unknown fields.

    Raises:
        UserError: `value` is not an object, lacks a field, or has an unknown field.
    """
    wanted = f"an object with {' and '.join(required)}" + (
        f" (and {', '.join(optional)} if need be)" if optional else ""
    )
    if not isinstance(value, dict):
        raise UserError(f"inputs must be {wanted}, not {type(value).__name__}")
    missing = [name for name in required if name not in value]
    unknown = [repr(name) for name in value if name not in (*required, *optional)]
    if missing or unknown:
        found = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise UserError(f"inputs must be {wanted}, but it {found}")
    return value
