"""Columns and formats of the output file of batch inference."""

import base64
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainyard.data import AS_JSON

INPUT = "input:"
"""Prefix of the input's columns in a part, since their names may equal those of answer columns."""

JSON_TYPES: dict[frozenset[str], pa.DataType] = {
    frozenset({"bool"}): pa.bool_(),
    frozenset({"int"}): pa.int64(),
    frozenset({"long"}): pa.int64(),
    frozenset({"int", "long"}): pa.int64(),
    frozenset({"int", "float"}): pa.float64(),
    frozenset({"float"}): pa.float64(),
    frozenset({"str"}): pa.string(),
}
"""Column type by the set of kinds of its JSON values; any other set stays JSON text."""


def json_kind(text: str) -> str:
    """Return the kind of a JSON value, see `JSON_TYPES`: its Python type, `long` or `json`.

    `long` is an integer of magnitude 2**53 or more, which a float may not hold exactly. `json` is
    an integer or string that Arrow cannot hold.
    """
    value = json.loads(text)
    if isinstance(value, int) and abs(value) >= 2**53:
        return "long" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return "json"
    return type(value).__name__


def as_input(table: pa.Table) -> pa.Table:
    """Return the table with `INPUT` in front of each column name."""
    return table.rename_columns([f"{INPUT}{name}" for name in table.column_names])


class Layout:
    """Columns of the output: the row's number, the texts, other columns of the input, the answers.

    A text appears once in a row: under the name of the input's column, or as `text` or `text_pair`
    if the output does not keep this column. A column of the input that is named like an answer, or
    another column that is named `text` or `text_pair`, gets the prefix `input_`.

    Attributes:
        encoded: Columns whose strings are JSON values.
    """

    def __init__(
        self,
        parts: Iterable[pa.Schema],
        kinds: Mapping[str, Sequence[str]],
        texts: Mapping[str, str | None],
    ) -> None:
        """Choose names and types of the output's columns.

        Args:
            parts: Schemas of all parts.
            kinds: Kinds of the values of each JSON column, see `json_kind`.
            texts: Name of the input's text column by column in a part, first text first; None if the
                output does not keep this column.
        """
        fields: dict[str, pa.Field] = {}
        for field in (field for schema in parts for field in schema):
            if field.name not in fields or pa.types.is_null(fields[field.name].type):
                fields[field.name] = field
        self._inputs = {name: field for name, field in fields.items() if name.startswith(INPUT)}
        self._ours = [name for name in fields if name not in self._inputs]
        self._types = {
            f"{INPUT}{name}": JSON_TYPES.get(frozenset(each)) for name, each in kinds.items()
        }
        self._names: dict[str, str] = {}
        self._ours = [name for name in self._ours if name not in texts]
        taken = set(self._ours)
        # A kept column has the first claim to its name: the second text's may be `text`.
        kept = {column: _free(name, taken) for column, name in texts.items() if name is not None}
        self._texts = {column: kept.get(column) or _free(column, taken) for column in texts}
        taken |= texts.keys()
        for name in self._inputs:
            self._names[name] = _free(name.removeprefix(INPUT), taken)
        self.encoded = {"prediction"} | {
            self._names[name]
            for name, field in self._inputs.items()
            if field.metadata
            and AS_JSON.items() <= field.metadata.items()
            and not self._types[name]
        }

    def arrange(self, part: pa.Table) -> pa.Table:
        """Return a part with the output's columns; the schema is the same for every part."""
        columns = {"row": part["row"]}
        columns |= {name: part[column] for column, name in self._texts.items()}
        for name, field in self._inputs.items():
            columns[self._names[name]] = self._input(part, name, field)
        return pa.table(columns | {name: part[name] for name in self._ours if name != "row"})

    def _input(self, part: pa.Table, name: str, field: pa.Field) -> Any:
        if name not in part.column_names:
            return pa.nulls(part.num_rows, self._types.get(name) or field.type)
        if pa.types.is_null(part[name].type):
            return part[name].cast(field.type)
        if (wanted := self._types.get(name)) is None:
            return part[name]
        values = [None if text is None else json.loads(text) for text in part[name].to_pylist()]
        return pa.array(values, wanted)


def _free(name: str, taken: set[str]) -> str:
    """Return `name` with the prefix `input_` until it is not in `taken`, and add it to `taken`."""
    while name in taken:
        name = f"input_{name}"
    taken.add(name)
    return name


class _TextWriter:
    def __init__(self, path: Path, encoded: set[str]) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="")
        self._encoded = encoded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class JsonlWriter(_TextWriter):
    """Writer of one JSON object per line; nested values stay nested.

    Nulls are left out, and so are NaN and infinity, which JSON lacks. Inside nested values, NaN
    and infinity become null.
    """

    def write(self, table: pa.Table) -> None:
        columns = [_values(column) for column in table.columns]
        for values in zip(*columns, strict=True):
            row = dict(zip(table.column_names, values, strict=True))
            line = {
                name: json.loads(value) if name in self._encoded else value
                for name, value in row.items()
                if value is not None
            }
            line = {name: value for name, value in line.items() if not _is_missing(value)}
            text = _json(line)
            try:
                text.encode()
            except UnicodeEncodeError:  # half of a surrogate pair needs an escape
                text = _json(line, ensure_ascii=True)
            self._file.write(text + "\n")


class CsvWriter(_TextWriter):
    """Writer of CSV with a header line. Nested values become JSON strings, and bytes base64.

    Nulls become empty fields, like empty strings.
    """

    _names: list[str] | None = None

    def write(self, table: pa.Table) -> None:
        lines = csv.writer(self._file, lineterminator="\n")
        if self._names is None:
            self._names = table.column_names
            lines.writerow(self._names)
        columns = [_values(table[name]) for name in self._names]
        lines.writerows(
            [
                _json(value)
                if isinstance(value, list | dict)
                else _plain(value)
                if isinstance(value, bytes)
                else value
                for value in row
            ]
            for row in zip(*columns, strict=True)
        )


class ParquetWriter:
    """Writer of typed columns; a column of values without a common type holds JSON strings."""

    def __init__(self, path: Path, encoded: set[str]) -> None:
        del encoded
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._writer = self._writer or pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)


def _json(value: Any, *, ensure_ascii: bool = False) -> str:
    """Return the value as JSON, with null for each NaN and infinity in it."""
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity; looking for them takes as long as writing the value
        finite = _finite(value)
        return json.dumps(finite, ensure_ascii=ensure_ascii, allow_nan=False, default=_plain)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _finite(value: Any) -> Any:
    """Return the value with None for each NaN and infinity in it."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_finite(item) for item in value]
        case dict():
            return {name: _finite(item) for name, item in value.items()}
    return value


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the Python values of a column, including values that pyarrow cannot convert.

    Bytes of a string that are not UTF-8 become backslash escapes. Dates and times out of Python's
    range, or in an unknown time zone, become strings, in UTC. A struct with a duplicate field name
    becomes a list of pairs.
    """
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        kind = scalar.type
    if pa.types.is_struct(kind):
        pairs = [(field.name, _value(scalar[i])) for i, field in enumerate(kind)]
        return dict(pairs) if len(dict(pairs)) == len(pairs) else pairs
    if pa.types.is_map(kind):
        return [(_value(pair[0]), _value(pair[1])) for pair in scalar.values]
    if pa.types.is_nested(kind):
        return [_value(item) for item in scalar.values]
    if pa.types.is_temporal(kind):
        return _time(scalar)
    return scalar.as_buffer().to_pybytes().decode(errors="backslashreplace")


def _time(scalar: pa.Scalar) -> str:
    """Convert a date, timestamp or duration to text with numpy, which has a wider range."""
    kind = scalar.type
    if pa.types.is_duration(kind):
        return str(np.timedelta64(scalar.value, kind.unit))
    if pa.types.is_date(kind):
        return str(np.datetime64(scalar.cast(pa.date32()).value, "D"))
    zone = "" if kind.tz is None else "+00:00"
    return str(np.datetime64(scalar.value, kind.unit)).replace("T", " ") + zone


def _plain(value: Any) -> str:
    """Convert a value that JSON lacks to text: bytes to base64, others such as dates by `str`."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


WRITERS: dict[str, type[CsvWriter | JsonlWriter | ParquetWriter]] = {
    ".csv": CsvWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}
"""Writers by the name ending of the output file."""
