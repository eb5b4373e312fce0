"""Open and read Parquet without ever building an Arrow extension type."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.data.columns import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    NOT_UTF8,
    Batch,
    Columns,
    undecodable,
    unreadable,
)
from trainyard.errors import UserError, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_TAIL_BYTES = 8  # the footer's length, then the magic


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open an untrusted Parquet file; use this function for every file of a user.

    Raises:
        UserError: The file is absent, damaged or not Parquet, cannot be read, or has an Arrow
            extension type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _refuse_extension_types(path)
        # Use a small read buffer: without one, whole columns of a row group are held in memory.
        return pq.ParquetFile(path, buffer_size=1 << 20)
    except pa.ArrowException as error:
        raise _damaged(path, error) from error
    except OSError as error:  # also for a footer that cannot be decoded
        raise unreadable(path, error) from error


def read_parquet(path: Path, columns: Columns) -> Iterator[Batch]:
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            remedy = "write the file with that column"
            columns.positions(file.schema_arrow.names, path.name, "its columns are", remedy)
            for name in columns.texts:
                _check_text_type(path, name, file.schema_arrow.field(name).type)
            names = _names_in(file.schema_arrow, columns.label) if columns.class_names else ()
            others = columns.others_of(file.schema_arrow.names)
            row = 0
            for record_batch in file.iter_batches(
                _batch_rows(file.metadata), columns=[*columns.names, *others]
            ):
                batch = Batch(
                    path=path,
                    first_row=0,
                    places=range(row + 1, row + 1 + record_batch.num_rows),
                    unit="row",
                    texts=tuple(record_batch[name].cast(pa.string()) for name in columns.texts),
                    labels=None,
                    others=pa.Table.from_batches([record_batch]).select(others) if others else None,
                )
                labels = _labels(record_batch, columns.label, names, batch)
                yield _checked(replace(batch, labels=labels), columns)
                row += record_batch.num_rows
    except pa.ArrowException as error:
        raise _damaged(path, error) from error


def _labels(
    rows: pa.RecordBatch, column: str | None, names: Sequence[str], batch: Batch
) -> list[Any] | None:
    if column is None:
        return None
    try:
        labels: list[Any] = rows[column].to_pylist()
    except UnicodeDecodeError:
        place = batch.place(undecodable(rows[column]) or 0)
        raise UserError(f"{place}: {column!r} {NOT_UTF8}") from None
    if not names:
        return labels

    def named(label: Any) -> Any:
        if isinstance(label, list):
            return [named(each) for each in label]
        return names[label] if isinstance(label, int) and 0 <= label < len(names) else label

    return [named(label) for label in labels]


def class_label_names(path: Path, column: str) -> Sequence[str]:
    """Return the names that `datasets` stores for a column of class ids; empty if there are none.

    Raises:
        UserError: `open_parquet` refuses the file.
    """
    with open_parquet(path) as file:
        return _names_in(file.schema_arrow, column)


def _names_in(schema: pa.Schema, column: str | None) -> Sequence[str]:
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
        feature = features.get(column) or {}
        feature = feature.get("feature") or feature  # a list of class ids
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, AttributeError):  # another program's metadata
        return ()
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else ()


def _damaged(path: Path, error: Exception) -> UserError:
    import pyarrow as pa

    return UserError(
        f"{path} is a damaged Parquet file, or uses what pyarrow {pa.__version__} cannot "
        f"read ({one_line(error)}); write it again, e.g. with pandas or datasets"
    )


def _refuse_extension_types(path: Path) -> None:
    """Refuse a file with Arrow extension types, by the bytes of its footer alone.

    Once ray.data is imported, some extension types run code from the file. Pyarrow builds the types
    when it opens the file, before the schema can be checked. The option `arrow_extensions_enabled`
    applies only to Parquet's own logical types. The footer holds the Arrow schema in base64, in
    which a name has one of three spellings, by its byte offset modulo 3.

    Raises:
        UserError: The file has an extension type, is not Parquet, or is cut short.
    """
    with path.open("rb") as handle:
        size = path.stat().st_size
        handle.seek(max(0, size - _TAIL_BYTES))
        tail = handle.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - len(_MAGIC) - _TAIL_BYTES:
            raise UserError(
                f"{path} is not a Parquet file, or is cut short (a whole one ends with "
                "PAR1); write it again, or give it the extension of what it is"
            )
        handle.seek(size - _TAIL_BYTES - length)
        footer = handle.read(length)
    if any(spelling in footer for spelling in _base64_spellings(b"ARROW:extension:name")):
        raise UserError(
            f"{path} has a column of an Arrow extension type, which can run code when it is "
            "read, so the file is refused; write it again with the text and label columns only, "
            "as plain strings and numbers"
        )


def _base64_spellings(name: bytes) -> list[bytes]:
    spellings = []
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + name)
        # Leave out the characters that share bits with the bytes before and after the name.
        whole = (shift + len(name)) // 3 * 4
        spellings.append(encoded[4 if shift else 0 : whole])
    return spellings


def _batch_rows(metadata: pa.FileMetaData) -> int:
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    row_bytes = max(
        (group.total_byte_size // max(1, group.num_rows) for group in groups), default=0
    )
    return max(1, min(BATCH_ROWS, BATCH_CHARACTERS // max(1, row_bytes)))


def _check_text_type(path: Path, name: str, found: pa.DataType) -> None:
    import pyarrow as pa

    value = found.value_type if pa.types.is_dictionary(found) else found
    is_text = pa.types.is_string(value) or pa.types.is_large_string(value)
    if not (is_text or pa.types.is_string_view(value) or pa.types.is_null(value)):
        raise UserError(
            f"{path.name}: column {name!r} holds {found}, expected strings; convert it to strings "
            "or name another column with --text-column"
        )


def _checked(batch: Batch, columns: Columns) -> Batch:
    """Check that the texts are valid UTF-8 and not null; add an error for each bad row.

    Raises:
        UserError: A row is bad, and `columns` does not keep bad rows.
    """
    import pyarrow as pa

    texts = list(batch.texts)
    errors: dict[int, str] = {}
    for position, name in enumerate(columns.texts):
        faults = dict(_faults(texts[position]))
        for index, fault in faults.items():
            error = UserError(f"{batch.place(index)}: {name!r} {fault}")
            errors[index] = columns.bad_row(index, error)[-1]
        if faults:
            kept = [None if i in faults else text.as_py() for i, text in enumerate(texts[position])]
            texts[position] = pa.array(kept, pa.string())
    return replace(batch, texts=tuple(texts), errors=errors)


def _faults(texts: pa.Array) -> Iterator[tuple[int, str]]:
    """Yield (index, fault) of each null or invalid UTF-8 text; Parquet readers accept both."""
    import pyarrow as pa

    if not texts.null_count:
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            pass
        else:
            return
    for index, text in enumerate(texts):
        try:
            if text.as_py() is None:
                yield index, "is null, expected a string; fill it in or remove the row"
        except UnicodeDecodeError:
            yield index, NOT_UTF8
