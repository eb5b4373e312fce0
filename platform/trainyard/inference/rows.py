"""Representation of a request between its HTTP body and the model: items that consist of rows."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class Row:
    """One sequence of a batch."""

    inputs: dict[str, list[int]]
    """Unpadded values by the model's input names, without the attention mask."""
    length: int
    """Tokens that the row occupies in a batch, including those to be generated."""
    group: str = ""
    """Only rows of equal groups may share a forward pass."""
    wanted: Any = None
    """Selection from the model's output, or options of generation, for `forward`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a request."""

    rows: list[Row]
    """One sequence, or several for long texts and candidate labels."""
    truncated: int = 0
    """Number of tokens cut off."""
    context: Any = None
    """Context for `postprocess`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, checked and tokenized."""

    items: list[Item]
    listed: bool
    """True if `inputs` was a list; then the answer is a list, too."""
    parameters: Any
    """Instance of the task's parameters dataclass."""

    @property
    def rows(self) -> list[Row]:
        """Rows of all items, in the order that `postprocess` expects."""
        return [row for item in self.items for row in item.rows]

    @property
    def truncated(self) -> list[int]:
        """Tokens cut off from each input."""
        return [item.truncated for item in self.items]
