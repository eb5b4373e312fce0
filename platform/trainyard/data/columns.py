"""Batches of rows, the output of all file readers, and checks of the columns."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.errors import UserError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000
BATCH_CHARACTERS = 1 << 25
"""Maximum characters of a batch: bounds memory when documents are long."""

AS_JSON = {b"trainyard": b"json"}
"""Metadata that marks an Arrow column whose strings are JSON values."""

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of one file."""

    path: Path
    first_row: int
    """0-based index of the batch's first row among all rows read."""
    places: Sequence[int]
    """1-based line on which each row starts; in Parquet and JSON arrays, the 1-based row number."""
    texts: tuple[pa.Array, ...]
    """One string array per text column, shape [rows]; null only for rows with an error."""
    labels: list[Any] | None
    """Label names, numbers or lists of names, by problem type; None without a label column."""
    unit: str = "line"
    """Unit of `places` in error sentences: line or row."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """Error sentences by index in the batch, if the reader keeps unusable rows."""
    others: pa.Table | None = None
    """Values of `Columns.others`; from JSON files they are JSON texts, marked by AS_JSON."""

    def __len__(self) -> int:
        return len(self.places)

    def place(self, index: int) -> str:
        """Return file and line of the row at `index` for errors, such as `train.csv line 17`."""
        return f"{self.path.name} {self.unit} {self.places[index]}"

    @property
    def empty_texts(self) -> int:
        """Number of empty texts in all text columns."""
        import pyarrow.compute as pc

        return sum(pc.sum(pc.equal(text, ""), min_count=0).as_py() for text in self.texts)

    def to_arrow(self, label: pa.Array | None) -> pa.RecordBatch:
        """Build a record batch of the canonical columns.

        They are `text`, `text_pair` (pairs only), the encoded `label` (if any), and `row`, the
        0-based index among all rows read.
        """
        import pyarrow as pa

        columns = dict(zip(("text", "text_pair"), self.texts, strict=False))
        if label is not None:
            columns["label"] = label
        rows = range(self.first_row, self.first_row + len(self))
        return pa.RecordBatch.from_pydict({**columns, "row": pa.array(rows, pa.int64())})


@dataclass(frozen=True, slots=True)
class TextFormat:
    """Delimiter of a CSV or TSV file, and encoding of any text file; Parquet ignores both."""

    delimiter: str | None = None
    """Separator of fields; None for a comma in CSV and a tab in TSV."""
    encoding: str = "utf-8"


class UnfitSettings(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """Error for a file whose columns or format are not those of the flags.

    Args:
        problem: Condition found and condition expected.
        remedy: Fix without knowledge of the file's settings.
        advice: Fix with this knowledge: texts before and after the flags to add.
        near: Column that is spelled like the missing one; None without one.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        advice: tuple[str, str] = ("add ", ""),
        near: str | None = None,
    ) -> None:
        super().__init__(f"{problem}{suggestion(near)}", remedy=remedy)
        self._bare, self._advice, self._near = problem, advice, near

    def with_settings(self, flags: str, values: Sequence[str]) -> UserError:
        """Build the error whose remedy is `flags`, the settings of the file; `values` are theirs."""
        problem = self.problem if self._near in values else self._bare
        return UserError(problem, remedy=flags.join(self._advice))


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns to read from a file, and options of the readers."""

    texts: tuple[str, ...]
    label: str | None
    keep_bad_rows: bool = False
    """True to keep an unusable row with its error instead of refusing the file."""
    format: TextFormat = TextFormat()
    class_names: bool = False
    """True to replace class ids with the names that `datasets` stores in a Parquet file."""
    others: tuple[str, ...] | None = ()
    """Further columns to keep if the file has them; None keeps all."""
    label_flag: str = "--label-column"
    """Flag that names the label column, for error sentences."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the required columns: texts, then the label."""
        return self.texts if self.label is None else (*self.texts, self.label)

    def flag(self, name: str) -> str:
        if name == self.label:
            return self.label_flag
        return "--text-column" if name == self.texts[0] else "--text-pair-column"

    def positions(
        self, found: Sequence[str], where: str, source: str, remedy: str, advice: str = "add "
    ) -> list[int]:
        """Return the index in `found` of each of `names`.

        `where`, `source` and `remedy` are parts of the error sentence. `advice` replaces `remedy`
        if the flags to add are known, and precedes them.

        Raises:
            UnfitSettings: A column is missing.
            UserError: A column occurs twice.
        """
        for name in self.names:
            if name not in found:
                raise UnfitSettings(
                    f"{where} has no column {name!r}: {source} {listing(map(repr, found))}",
                    remedy=f"{remedy}, or name another column with {self.flag(name)}",
                    advice=(advice, ""),
                    near=closest(name, found),
                )
            if found.count(name) > 1:
                raise UserError(
                    f"{where} has {found.count(name)} columns called {name!r}, so "
                    f"{self.flag(name)} is ambiguous; rename all but one of them"
                )
        return [found.index(name) for name in self.names]

    def others_of(self, found: Sequence[str]) -> list[str]:
        """Return the names in `found` of further columns to keep, except duplicate names."""
        if self.others == ():
            return []
        return [
            name
            for name in found
            if name not in self.names
            and (self.others is None or name in self.others)
            and found.count(name) == 1
        ]

    def bad_row(
        self, place: int, error: UserError, others: Mapping[str, Any] | None = None
    ) -> tuple[Any, ...]:
        """Return an unusable row: (place, None for each column, `others`, error sentence).

        Raises:
            UserError: `keep_bad_rows` is False; `error` itself is raised.
        """
        if not self.keep_bad_rows:
            raise error
        return (place, *[None] * len(self.names), others, str(error))


def listing(names: Iterable[str]) -> str:
    """Join names for a sentence: the first ten, and the number of further names."""
    all_names = list(names)
    more = f" and {len(all_names) - _SHOWN} more" if len(all_names) > _SHOWN else ""
    return ", ".join(all_names[:_SHOWN]) + more


def closest(name: str, names: Sequence[str]) -> str | None:
    """Return the one of `names` that is spelled most like `name`; None if none is close."""
    folded = {other.strip().casefold(): other for other in names}
    near = difflib.get_close_matches(name.strip().casefold(), folded, n=1)
    return folded[near[0]] if near else None


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return a part of a sentence that suggests the closest of `names`; "" if none is close."""
    return suggestion(closest(name, names))


def suggestion(near: str | None) -> str:
    """Return a part of a sentence that suggests the name `near`; "" if it is None."""
    return "" if near is None else f" (did you mean {near!r}?)"


def readable(origin: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield `batches` of the file `origin`.

    Raises:
        UserError: A page of the file is damaged, although its footer is valid.
    """
    import pyarrow as pa

    rows = 0
    try:
        for batch in batches:
            yield batch
            rows += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{origin} cannot be read from row {rows} on ({one_line(error)}); fetch it again"
        ) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """Build the error for a file that cannot be opened or decoded."""
    return UserError(
        f"{path} cannot be read ({error.strerror or one_line(error)}); check that the file is whole "
        "and that you may read it"
    )


NOT_UTF8 = "is not UTF-8; decode the text properly and write the file again"
"""End of an error sentence. Parquet readers accept any bytes as a string."""


def undecodable(column: pa.Array) -> int | None:
    """Return the index of the first value with a string that is not UTF-8; None without one."""
    import pyarrow as pa

    with contextlib.suppress(pa.ArrowInvalid):
        column.validate(full=True)
        return None
    for index, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return index
    return None


def column_as(
    place: str, first: int, batch: pa.RecordBatch, name: str, kind: pa.DataType, expected: str
) -> pa.Array:
    """Cast column `name` of a batch to `kind`; `first` is the index of the batch's first row.

    Raises:
        UserError: A value does not fit, or is not UTF-8. The message names `place`, the row and
            the `expected` values.
    """
    import pyarrow as pa

    def fits(value: pa.Scalar) -> bool:
        try:
            value.cast(kind)
        except pa.ArrowException:
            return False
        return True

    column = batch[name]
    if (wrong := undecodable(column)) is not None:
        raise UserError(f"{place} {first + wrong}: '{name}' {NOT_UTF8}")
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        bad = next((row for row, value in enumerate(column) if not fits(value)), 0)
        raise UserError(
            f"{place} {first + bad}: '{name}' is {str(column[bad])[:60]!r} ({column.type}), expected "
            f"{expected}; correct the column"
        ) from error
