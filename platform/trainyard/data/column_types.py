"""Record batches of other people's files: damage and values of another type, told with their row."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from trainyard.data.columns import one_line
from trainyard.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def readable(origin: str, batches: "Iterable[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
    """Yield `batches`; damage behind a whole footer is met only when its page is read.

    Raises:
        UserError: naming `origin` and the row from which on it cannot be read.
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


def column_as(
    place: str, first: int, batch: "pa.RecordBatch", name: str, kind: "pa.DataType", expected: str
) -> "pa.Array":
    """Column `name` of a batch as `kind`; `first` is the number of the batch's first row.

    Raises:
        UserError: naming `place` and the row whose value cannot be that, and what is `expected`.
    """
    import pyarrow as pa

    def fits(value: "pa.Scalar") -> bool:
        try:
            value.cast(kind)
        except pa.ArrowException:
            return False
        return True

    column = batch[name]
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        bad = next((row for row, value in enumerate(column) if not fits(value)), 0)
        raise UserError(
            f"{place} {first + bad}: '{name}' is {str(column[bad])[:60]!r} ({column.type}), expected "
            f"{expected}; correct the column"
        ) from error
