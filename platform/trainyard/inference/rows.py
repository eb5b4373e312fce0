"""A request between its HTTP body and the model: items, made of rows, which are what is batched."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class Row:
    """One sequence for the model: what a batch is made of."""

    inputs: dict[str, list[int]]
    """Unpadded values by the model's input names, without the attention mask."""
    length: int
    """Tokens that the row occupies in a batch, those still to be generated included."""
    group: str = ""
    """Only rows of equal groups may share a forward pass."""
    wanted: Any = None
    """Selection from the model's output, or options of generation, for `forward`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a request."""

    rows: list[Row]
    """Its sequences: one, or several for long texts and candidate labels."""
    truncated: int = 0
    """Tokens that were cut off."""
    context: Any = None
    """Context for `postprocess`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, checked and tokenized."""

    items: list[Item]
    listed: bool
    """True if `inputs` was a list: the answer is a list, too."""
    parameters: Any
    """The task's dataclass of parameters."""

    @property
    def rows(self) -> list[Row]:
        """The rows of all items, in the order in which `postprocess` wants their results."""
        return [row for item in self.items for row in item.rows]

    @property
    def truncated(self) -> list[int]:
        """Tokens cut off from each input."""
        return [item.truncated for item in self.items]
