"""Read CSV, TSV, JSON Lines and JSON."""

from __future__ import annotations

import codecs
import csv
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainyard.data.columns import (
    AS_JSON,
    BATCH_CHARACTERS,
    BATCH_ROWS,
    Batch,
    Columns,
    UnfitSettings,
)
from trainyard.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_FIELD_CHARACTERS = 1 << 26
"""Maximum characters of a CSV field. The csv module's default, 128 KiB, refuses long documents;
without a limit an unclosed quote would read the rest of the file into one field."""

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Encodings other than UTF-8, by the byte order mark at the start of a file."""
_FIRST_SURROGATE = 0xDC80
_LAST_SURROGATE = 0xDCFF

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Delimiter by the ending of a file's name."""
SEPARATORS = (",", ";", "\t", "|")
"""Characters between the fields of a file that are recognized, likeliest first."""

Row = tuple[Any, ...]
"""(line, texts, label if there is a label column, other values by column, error or None), flat."""


def read_csv(path: Path, columns: Columns) -> Iterator[Batch]:
    """Read CSV by RFC 4180: quotes around fields if needed, quotes inside a field doubled.

    Raises:
        UserError: A row, the header or the encoding cannot be used.
    """
    with _opened(path, columns.format.encoding) as text:
        lines = _Lines(text)
        reader = csv.reader(
            lines, strict=True, delimiter=columns.format.delimiter or DELIMITERS[".csv"]
        )
        remedy = "put double quotes around fields that contain a comma or a line break"
        yield from _batches(path, columns, _records(path, columns, lines, reader, remedy))


def read_tsv(path: Path, columns: Columns) -> Iterator[Batch]:
    """Read TSV: lines split at tabs, without quoting.

    GLUE's TSV files hold stray quotes, so a reader with quoting would silently merge rows. A field
    can hold neither a tab nor a line break.

    Raises:
        UserError: A row, the header or the encoding cannot be used.
    """
    with _opened(path, columns.format.encoding) as text:
        lines = _Lines(text)
        delimiter = columns.format.delimiter or DELIMITERS[".tsv"]
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        remedy = "a field cannot contain a tab or a line break: replace them by spaces or use CSV"
        yield from _batches(path, columns, _records(path, columns, lines, reader, remedy))


def read_json(path: Path, columns: Columns) -> Iterator[Batch]:
    """Read one JSON object per line, or one array of objects if the file starts with `[`.

    Blank lines are skipped. Lines are streamed; an array is loaded as a whole.

    Raises:
        UserError: A row, its keys or the encoding cannot be used.
    """
    with _opened(path, columns.format.encoding) as lines:
        leading: list[str] = []
        for line in lines:
            leading.append(line)
            if not line.isspace():
                break
        everything = chain(leading, lines)
        if "".join(leading).lstrip().startswith("["):
            rows = _elements(path, columns, "".join(everything))
            yield from _batches(path, columns, rows, unit="row", encoded=True)
        else:
            yield from _batches(path, columns, _objects(path, columns, everything), encoded=True)


def first_line(path: Path, encoding: str) -> str:
    """Return the first line of a file, or "" of an empty one.

    Raises:
        UserError: The file is not in this encoding.
    """
    with _opened(path, encoding) as lines:
        return next(lines, "")


def conversion(path: Path, encoding: str) -> str:
    """Return the command line that converts a file to UTF-8."""
    known = {"cp1252": "WINDOWS-1252", "latin-1": "ISO-8859-1"}.get(encoding, encoding.upper())
    source, target = map(shlex.quote, (str(path), str(path.with_name(f"utf8-{path.name}"))))
    return f"iconv -f {known} -t UTF-8 {source} > {target}"


def undecodable_line(path: Path) -> str:
    """Return the sentence that locates the first byte of a file that is not UTF-8; "" without one.

    Raises:
        UserError: The file holds a NUL byte.
    """
    try:
        with _opened(path, "utf-8") as lines:
            for _ in lines:
                pass
    except UnfitSettings as error:
        return error.problem
    return ""


def _batches(
    path: Path, columns: Columns, rows: Iterator[Row], unit: str = "line", *, encoded: bool = False
) -> Iterator[Batch]:
    import pyarrow as pa

    texts = slice(1, 1 + len(columns.texts))
    while True:
        chunk: list[Row] = []
        characters = 0
        with _long_fields():
            for row in islice(rows, BATCH_ROWS):
                chunk.append(row)
                characters += sum(map(len, filter(None, row[texts])))
                if characters >= BATCH_CHARACTERS:
                    break
        if not chunk:
            return
        fields = list(zip(*chunk, strict=True))
        yield Batch(
            path=path,
            first_row=0,
            places=fields[0],
            texts=tuple(pa.array(text, pa.string()) for text in fields[texts]),
            labels=list(fields[-3]) if columns.label else None,
            unit=unit,
            errors={index: error for index, error in enumerate(fields[-1]) if error},
            others=None if columns.others == () else _others(fields[-2], encoded=encoded),
        )


def _others(rows: Sequence[dict[str, Any] | None], *, encoded: bool) -> pa.Table:
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row or ()))
    metadata = AS_JSON if encoded else None
    return pa.table(
        [pa.array([(row or {}).get(name) for row in rows], pa.string()) for name in names],
        pa.schema([pa.field(name, pa.string(), metadata=metadata) for name in names]),
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    # The limit is global to the process: raise it only while rows are parsed.
    before = csv.field_size_limit(_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _Lines:
    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.last = ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        return self.last


def _records(
    path: Path, columns: Columns, lines: _Lines, reader: Any, remedy: str
) -> Iterator[Row]:
    start = 1
    positions: list[int] = []
    others: dict[str, int] = {}
    width = 0
    while True:
        try:
            record = next(reader, None)
        except csv.Error as error:
            fault = UserError(
                f"{path.name} line {start}: the quotes of the row that starts here do not match up "
                f"({error}); close every quoted field, and double a quote inside one"
            )
            # The start of the next row is known only if the row is one line with paired quotes.
            if not width or reader.line_num > start or lines.last.count('"') % 2:
                raise fault from error
            yield columns.bad_row(start, fault)
            start = reader.line_num + 1
            continue
        if record is None:
            return
        if not record:  # a blank line
            pass
        elif not width:
            positions = _header(path, columns, record)
            width = len(record)
            others = {name: record.index(name) for name in columns.others_of(record)}
        elif len(record) == width:
            kept = {name: record[position] for name, position in others.items()}
            yield (start, *[record[position] for position in positions], kept, None)
        else:
            wrong = UserError(
                f"{path.name} line {start}: {len(record)} fields, expected {width} as in "
                f"the first line; {remedy}"
            )
            yield columns.bad_row(start, wrong)
        start = reader.line_num + 1


def _header(path: Path, columns: Columns, names: list[str]) -> list[int]:
    remedy = "the first line of the file must name the columns"
    advice = f"{remedy}: if it does, add "
    if names[0].startswith("sep="):
        remedy = "remove this line, which only Excel reads, and name the separator with --delimiter"
    elif len(names) == 1:
        separators = [mark for mark in SEPARATORS if mark in names[0]]
        if separators:
            expected = "tabs" if path.suffix.lower() == ".tsv" else "commas"
            found = repr(separators[0])
            typed = f"${found}" if separators[0] == "\t" else found  # as a shell reads it
            advice = f"{remedy}, and their separator seems to be {found}: add "
            remedy += (
                f", separated by {expected} (the separator seems to be {found}: add "
                f"--delimiter {typed})"
            )
    return columns.positions(names, path.name, "its first line names", remedy, advice)


class _Doubled(dict[str, Any]):
    """JSON object in which a key occurs twice; `names` are its keys, repetitions included."""

    names: Sequence[str]


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    doubled = _Doubled(record)
    doubled.names = [name for name, _ in pairs]
    return doubled


_JSON = json.JSONDecoder(object_pairs_hook=_json_object)  # json.loads would build one for each row


def _names(record: dict[str, Any]) -> list[str]:
    return list(record.names if isinstance(record, _Doubled) else record)


def _objects(path: Path, columns: Columns, lines: Iterator[str]) -> Iterator[Row]:
    def parsed(where: str, line: str) -> object:
        try:
            return _JSON.decode(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: not valid JSON ({error}); every line must hold one complete object, "
                'such as {"text": "...", "label": "..."}'
            ) from error

    named = False
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        where = f"{path.name} line {number}"
        try:
            record = _object(where, parsed(where, line))
        except UserError as error:
            yield columns.bad_row(number, error)
            continue
        if not named:  # a column that the first object lacks is a mistake in its name, not in a row
            _check_keys(where, columns, list(record))
            named = True
        yield _row(where, number, columns, record, escapes="\\u" in line)


def _elements(path: Path, columns: Columns, text: str) -> Iterator[Row]:
    try:
        records = _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path.name} starts with '[' but is not a valid JSON array ({error}); write one array of "
            "objects, or one object on every line"
        ) from error
    for number, record in enumerate(records, 1):
        where = f"{path.name} row {number}"
        try:
            row = _object(where, record)
        except UserError as error:
            yield columns.bad_row(number, error)
            continue
        if number == 1:
            _check_keys(where, columns, list(row))
        yield _row(where, number, columns, row, escapes=True)


def _row(
    where: str, number: int, columns: Columns, record: dict[str, Any], *, escapes: bool
) -> Row:
    others = {
        name: json.dumps(record[name])
        for name in columns.others_of(list(record))
        if record[name] is not None
    }
    try:
        return (number, *_values(where, columns, record, escapes=escapes), others, None)
    except UserError as error:
        return columns.bad_row(number, error, others)


def _object(where: str, record: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: expected a JSON object, found {_kind(record)}; write every row as "
            'one object, such as {"text": "...", "label": "..."}'
        )
    return record


def _check_keys(where: str, columns: Columns, names: Sequence[str]) -> None:
    remedy = "every line must have the same keys"
    columns.positions(names, where, "its keys are", remedy)


def _values(where: str, columns: Columns, record: dict[str, Any], *, escapes: bool) -> list[Any]:
    if isinstance(record, _Doubled) or not all(name in record for name in columns.names):
        _check_keys(where, columns, _names(record))
    values = [record[name] for name in columns.names]
    for name, text in zip(columns.texts, values, strict=False):
        if type(text) is not str:
            raise UserError(
                f"{where}: {name!r} is {_kind(text)}, expected a string; put the text "
                "in quotes or remove the row"
            )
    if escapes:
        _check_surrogates(where, values)
    return values


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"the boolean {json.dumps(value)}"
        case int() | float():
            return f"the number {value}"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"


def _check_surrogates(where: str, values: list[Any]) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a surrogate pair, \\u{ord(error.object[error.start]):04x}, stands "
            "alone and is not a character; write the whole pair or remove it"
        ) from error


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    codec = codecs.lookup(encoding).name
    with path.open("rb") as binary:
        start = binary.read(max(map(len, MARKS)))
    if start.startswith(codecs.BOM_UTF8) and not codec.startswith("utf-8"):
        raise UserError(
            f"{path.name} line 1: the file starts with the mark of UTF-8, but --encoding is {encoding}; "
            "leave out --encoding"
        )
    if codec == "utf-8":
        encoding = "utf-8-sig"
        for mark, name in MARKS.items():
            if start.startswith(mark):
                convert = f", or convert it: {conversion(path, name)}"
                raise UnfitSettings(
                    f"{path.name} line 1: the file is {name} (it starts with {mark!r}), expected "
                    "UTF-8",
                    remedy=f"add --encoding {name.lower()}{convert}",
                    advice=("add ", convert),
                )
    with path.open(encoding=encoding, newline="") as text:
        yield _lines(path, text, encoding)


def _lines(path: Path, text: Iterator[str], encoding: str) -> Iterator[str]:
    try:
        for number, line in enumerate(text, 1):
            if number == 1:
                line = line.removeprefix("\ufeff")
            if "\0" in line:
                raise UserError(
                    f"{path.name} line {number}: a NUL byte, which no text file contains; the "
                    "file is damaged, binary or UTF-16: re-save it as UTF-8, e.g. with iconv"
                )
            yield line
    except UnicodeError as error:
        if encoding == "utf-8-sig":
            _raise_undecodable(path)
        remedy = "give its encoding with --encoding"
        if "BOM" in str(error):  # the order of bytes is unknown
            codec = codecs.lookup(encoding).name
            remedy = f"give --encoding {codec}-le or {codec}-be, or another encoding"
        raise UserError(
            f"{path.name} is not {encoding} ({getattr(error, 'reason', error)}); {remedy}"
        ) from None


def _raise_undecodable(path: Path) -> NoReturn:
    # Decoding in large blocks does not report the position: search line by line.
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as text:
        for number, line in enumerate(text, 1):
            for position, character in enumerate(line):
                if _FIRST_SURROGATE <= ord(character) <= _LAST_SURROGATE:
                    convert = f", or convert it: {conversion(path, 'cp1252')}"
                    advice = ("give its encoding, such as ", convert)
                    raise UnfitSettings(
                        f"{path.name} line {number}: byte {ord(character) - 0xDC00:#x} "
                        f"(number {len(line[:position].encode()) + 1} of the line) is not UTF-8",
                        remedy="--encoding cp1252".join(advice),
                        advice=advice,
                    ) from None
    raise UserError(f"{path.name} changed while it was read; wait until it is written, then retry")
