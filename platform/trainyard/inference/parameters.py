"""Parameters of requests: frozen dataclasses, one per task, checked by pydantic; never guessed at.

The same dataclasses describe themselves to OpenAPI: `json_schema`.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

from trainyard.errors import UserError

STRICT = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}
"""`__pydantic_config__` of each class of parameters: "2" is no number, and a
name that is not known is a mistake, not something to ignore."""

Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
"""Treatment of texts longer than the model takes: refuse them (False), or cut them off."""

Parameters = TypeVar("Parameters")


def check_parameters(
    cls: type[Parameters], given: Mapping[str, Any] | None, task: str
) -> Parameters:
    """Build `cls` from the `parameters` of a request.

    Raises:
        UserError: for a name or a value that the task does not know; proposes the nearest name.
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
    """JSON schema of a class of parameters, with what the docstrings of its fields say.

    Pydantic reads the docstrings of a class itself, not those of the classes it extends.
    """
    schema: dict[str, Any] = _adapter(cls).json_schema(**options)
    for base in cls.__mro__[1:]:
        if is_dataclass(base):
            known: Any = base  # mypy calls no dataclass hashable
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
        return f"{place} is no parameter of {task}; {hint} {', '.join(names)}"
    if fault["type"] == "missing":
        return f"{place} is missing; {task} cannot do without it"
    shown = repr(fault["input"])
    shown = shown if len(shown) < 60 else f"{shown[:57]}..."
    return f"{place} is {shown}: {str(fault['msg'])[0].lower()}{str(fault['msg'])[1:]}"
