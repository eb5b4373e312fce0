"""What every reader yields, and how it speaks about places and columns in a file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000
# Long documents: a batch ends here even when it has few rows, so memory stays flat.
BATCH_CHARACTERS = 1 << 25

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of one file."""

    path: Path
    first_row: int
    """0-based position in the file of the first row."""
    places: Sequence[int]
    """1-based line on which each row starts; in Parquet, the 1-based row."""
    texts: tuple[pa.Array, ...]
    """One string array for each text column; without nulls, but for rows that have an error."""
    labels: list[Any] | None
    """Label names, numbers or lists of names, by problem type; None without a label column."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """What is wrong with rows that cannot be used, by index: where the reader keeps such rows."""

    def __len__(self) -> int:
        return len(self.places)

    def place(self, index: int) -> str:
        """Name the row at `index` for an error message: `train.csv line 17`."""
        unit = "row" if self.path.suffix.lower() == ".parquet" else "line"
        return f"{self.path.name} {unit} {self.places[index]}"

    @property
    def empty_texts(self) -> int:
        """How many texts are the empty string: they are kept, and worth a warning."""
        import pyarrow.compute as pc

        return sum(pc.sum(pc.equal(text, ""), min_count=0).as_py() for text in self.texts)

    def to_arrow(self, label: pa.Array | None) -> pa.RecordBatch:
        """Return the canonical columns `text`, `text_pair`, `label` (as encoded) and `row`."""
        import pyarrow as pa

        columns = dict(zip(("text", "text_pair"), self.texts, strict=False))
        if label is not None:
            columns["label"] = label
        rows = range(self.first_row, self.first_row + len(self))
        return pa.RecordBatch.from_pydict({**columns, "row": pa.array(rows, pa.int64())})


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that the user asked for."""

    texts: tuple[str, ...]
    label: str | None
    keep_bad_rows: bool = False
    """Whether a row that cannot be used is kept, with its error, or refuses the file."""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns in the order in which rows hold them: texts, then the label."""
        return self.texts if self.label is None else (*self.texts, self.label)

    def flag(self, name: str) -> str:
        """The flag with which the user named this column."""
        if name == self.label:
            return "--label-column"
        return "--text-column" if name == self.texts[0] else "--text-pair-column"

    def positions(self, found: Sequence[str], where: str, source: str, remedy: str) -> list[int]:
        """Return where each column is among those `found`.

        Raises:
            UserError: a column is absent, or its name occurs twice.
        """
        for name in self.names:
            if name not in found:
                raise UserError(
                    f"{where} has no column {name!r}: {source} {listing(map(repr, found))}"
                    f"{did_you_mean(name, found)}; {remedy}, or name another column "
                    f"with {self.flag(name)}"
                )
            if found.count(name) > 1:
                raise UserError(
                    f"{where} has {found.count(name)} columns called {name!r}, so which one is "
                    f"meant for {self.flag(name)} is unclear; rename all but one of them"
                )
        return [found.index(name) for name in self.names]

    def bad_row(self, place: int, error: UserError) -> tuple[Any, ...]:
        """What is kept of a row that cannot be used: its place, no values, and the error.

        Raises:
            UserError: `error`, where such rows are not kept.
        """
        if not self.keep_bad_rows:
            raise error
        return (place, *[None] * len(self.names), str(error))


def listing(names: Iterable[str]) -> str:
    """Join names for a sentence; only the first few of many."""
    known = list(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more


def one_line(error: Exception) -> str:
    """Return what a library says, for a sentence: pyarrow's messages hold line breaks."""
    return " ".join(str(error).split())


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a sentence that proposes the nearest known name, if one is near."""
    folded = {other.strip().casefold(): other for other in known}
    near = difflib.get_close_matches(name.strip().casefold(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""
