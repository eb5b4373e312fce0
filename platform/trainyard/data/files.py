"""Stream a CSV, TSV, JSON, JSON Lines or Parquet file as batches of texts and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import glob, has_magic
from os.path import exists
from pathlib import Path
from typing import TYPE_CHECKING

from trainyard.data.columns import (
    Batch,
    Columns,
    TextFormat,
    closest,
    suggestion,
    unreadable,
)
from trainyard.data.labels import canonical_labels
from trainyard.data.parquet_files import read_parquet
from trainyard.data.text_files import read_csv, read_json, read_tsv
from trainyard.errors import UserError

if TYPE_CHECKING:
    from trainyard.tasks import ProblemType

_READERS = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_json,
    ".parquet": read_parquet,
}


def read_rows(
    path: str | Path,
    text_columns: Sequence[str],
    label_column: str | None,
    problem_type: ProblemType | None,
    *,
    keep_bad_rows: bool = False,
    text_format: TextFormat = TextFormat(),  # noqa: B008 (frozen)
    class_names: bool = False,
    text_lists: bool = True,
    others: tuple[str, ...] | None = (),
    label_flag: str = "--label-column",
) -> Iterator[Batch]:
    """Yield the rows of a file in order, in batches of bounded size.

    Without text columns, only the labels are read, which is fast in Parquet. `keep_bad_rows`, for
    files without labels, keeps an unusable row and its error (`Batch.errors`). Faults of the whole
    file are always errors: wrong encoding, missing columns, an unclosed quote. `Columns` describes
    `class_names`, `others` and `label_flag`. `canonical_labels` describes `problem_type` and
    `text_lists`.

    Raises:
        UnfitSettings: The file has another encoding, or other columns.
        UserError: The file or a row cannot be used. The message names the place and the fix.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        check_file(path)
        raise UserError(
            f"{path.name} ends in {path.suffix!r}, expected a file that ends in "
            ".csv, .tsv, .json, .jsonl or .parquet; convert or rename it"
        )
    columns = Columns(
        tuple(text_columns),
        label_column,
        keep_bad_rows,
        text_format,
        class_names,
        others,
        label_flag,
    )
    if len(set(columns.names)) < len(columns.names):
        raise UserError(
            f"one column is named twice ({', '.join(columns.names)}); --text-column, "
            "--text-pair-column and --label-column must name different columns"
        )
    try:
        check_file(path)
        first_row = 0
        for batch in reader(path, columns):
            labels = canonical_labels(batch, problem_type, text_lists=text_lists)
            yield replace(batch, first_row=first_row, labels=labels)
            first_row += len(batch)
    except OSError as error:
        raise unreadable(path, error) from error
    if first_row == 0:
        raise UserError(
            f"{path.name} has no rows; expected at least one row of data (in CSV and TSV: below "
            "the first line, which names the columns)"
        )


_NOT_DATA = {
    b"version https://git-lfs": "is a Git LFS pointer, not the data; fetch the data with git lfs pull",
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"\x28\xb5\x2f\xfd": "is compressed; unpack it with unzstd",
    b"PK\x03\x04": "is a ZIP archive or a workbook; unpack it, or save the sheet as CSV",
}
"""Ends of error sentences, by the first bytes of a file."""

_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
"""Endings of the names of spreadsheets."""


def files_of(pattern: str) -> tuple[Path, ...]:
    """Return the files of a path, of a glob pattern, or of several of them separated by commas.

    Raises:
        UserError: A pattern matches no file. A path without wildcards is not checked.
    """
    if exists(pattern):  # noqa: PTH110 (Path.exists raises for a list that is too long for a path)
        return (Path(pattern),)
    found: list[Path] = []
    for part in map(str.strip, pattern.split(",")):
        matches = sorted(map(Path, glob(part))) if has_magic(part) else [Path(part)]  # noqa: PTH207
        if not matches:
            raise UserError(f"no file matches {part}; correct the pattern")
        found += matches
    return tuple(found)


def similar_file(path: Path) -> str:
    """Return a part of a sentence that suggests a file in the folder of `path`; "" without one."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.is_file()]
    except OSError:
        return ""
    near = closest(path.name, names)
    return suggestion(near and str(path.with_name(near)))


def check_file(path: Path) -> None:
    """Refuse a path that is not a readable data file.

    Raises:
        UserError: The path is absent, a folder, empty, compressed, a workbook, or a Git LFS
            pointer, or cannot be read.
    """
    try:
        _check_content(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _check_content(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file; name one file inside it")
    if not path.exists():
        raise UserError(
            f"{path} does not exist{similar_file(path)}; give the path of a file, absolute or relative "
            f"to {Path.cwd()}"
        )
    if path.suffix.lower() in _WORKBOOKS:
        raise UserError(
            f"{path.name} is a workbook, and only text files and Parquet are read; save its sheet as "
            "CSV UTF-8, and give that file"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path.name} is empty (0 bytes); expected rows of data, so write it again")
    with path.open("rb") as file:
        start = file.read(max(map(len, _NOT_DATA)))
    for mark, fault in _NOT_DATA.items():
        if start.startswith(mark):
            raise UserError(f"{path.name} {fault}")
