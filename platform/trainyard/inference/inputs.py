"""Checks of what a request sends as `inputs`, each answered by one sentence."""

from collections.abc import Sequence
from typing import Any

from trainyard.errors import UserError


def text_of(value: Any, place: str = "inputs") -> str:
    """`value`, if it is a text that can be tokenized.

    Raises:
        UserError: naming the place of the request.
    """
    if not isinstance(value, str):
        shown = repr(value)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        raise UserError(f"{place} must be a text, not {shown}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} is no valid Unicode: character {error.start} is half of a surrogate pair"
        ) from None
    return value


def fields_of(value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """`value`, if it is an object with the fields that a task reads.

    Raises:
        UserError: naming the fields that are missing or not known.
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
