"""Rows of one batch inference job on disk: raw parts, done parts and the output file.

    .scores.jsonl-lease.json                  lease of the writer of scores.jsonl
    .scores.jsonl-3f1c…/raw/000000.parquet    row, text, text_pair, error, file, other columns of the input
    .scores.jsonl-3f1c…/done/000000.parquet   the same rows with their predictions

Parts are written atomically. The folder's name contains the identity of the job, so a job with
another model or other input files never reuses its parts. A finished job removes all folders of its output
file.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainyard.data import (
    AS_JSON,
    Batch,
    TextFormat,
    did_you_mean,
    listing,
    naming_settings,
    read_rows,
)
from trainyard.errors import UserError
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.batch.output import WRITERS, Layout, as_input, json_kind
from trainyard.storage import Disk, Fence, Lease, scratch_path, sync_folder, write_json

ROWS_PER_PART = 4_096
"""Maximum rows of a part. After a kill, each worker repeats at most one part."""


class Parts:
    """Parquet parts of the input's rows, raw and predicted, for one job of batch inference.

    Parts are in a hidden folder next to the output file, where the same command finds them again.

    Raises:
        UserError: The folder of the output file or a column does not exist, or an input file cannot
            be read. Or the output file is a folder or an input file, or two input files have
            different types of values in one column.
    """

    def __init__(self, config: PredictConfig) -> None:
        output = Path(config.output_file).absolute()
        if not output.parent.is_dir():
            raise UserError(
                f"the folder {output.parent} of --output-file does not exist; create it"
            )
        if output.is_dir():
            raise UserError(f"--output-file {output} is a folder; give the path of a file")
        for source in config.files:
            if output.exists() and source.exists() and output.samefile(source):
                raise UserError(
                    f"--output-file {config.output_file} and --input-file {source} are the same file, "
                    "which the predictions would replace; give another --output-file"
                )
        self._config = config
        # A wrong file name or column is an error before any work.
        with naming_settings(config, config.files, config.text_columns, None):
            self._check_columns()
        self._output = output
        self._folder = output.with_name(f".{output.name}-{config.identity()}")
        self._raw, self._done = self._folder / "raw", self._folder / "done"
        self._fence: Fence | None = None

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold the lease on the output file: one job at a time writes it and its parts.

        Raises:
            HeldError: Another job writes the output file.
        """
        name = f".{self._output.name}-lease.json"
        what, remedy = f"--output-file {self._output}", "choose another --output-file"
        with Lease(Disk(self._output.parent), name, what, remedy=remedy) as lease:
            self._fence = lease.fence()
            yield lease

    def _check(self) -> None:
        """Check, before files are written or deleted, that this job still holds its lease.

        Raises:
            SupersededError: Another job has taken the lease over.
            UserError: The storage does not answer.
        """
        if self._fence is not None:
            self._fence.check()

    def read(self) -> None:
        """Split the input files into raw parts, unless these exist. Invalid rows keep their error.

        Raises:
            UserError: An input file cannot be read.
            SupersededError: Another job has taken over the output file.
        """
        if self._complete.exists():
            return
        self._check()
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._raw, self._done):
            folder.mkdir(parents=True)
        rows = number = 0
        kinds: dict[str, set[str]] = {}
        try:
            for batch in self._batches():
                errors = pa.array(map(batch.errors.get, range(len(batch))), pa.string())
                table = pa.Table.from_batches([batch.to_arrow(None)]).append_column("error", errors)
                if len(self._config.files) > 1:
                    name = pa.repeat(pa.scalar(str(batch.path)), len(batch))
                    table = table.append_column("file", name)
                others = batch.others or pa.table({})
                for field in others.schema:
                    if field.metadata and AS_JSON.items() <= field.metadata.items():
                        texts = others[field.name].drop_null().to_pylist()
                        kinds.setdefault(field.name, set()).update(map(json_kind, texts))
                for name, column in zip(as_input(others).schema, others.columns, strict=True):
                    table = table.append_column(name, column)
                for start in range(0, table.num_rows, ROWS_PER_PART):
                    part = table.slice(start, ROWS_PER_PART)
                    self._write(part, self._raw / f"{number:06d}.parquet")
                    rows, number = rows + part.num_rows, number + 1
        except UserError:
            self._check()  # a successor may have the same flags, and thus this folder
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._check()
        write_json(
            self._complete,
            {"rows": rows, "kinds": {name: sorted(each) for name, each in kinds.items()}},
        )

    def _check_columns(self) -> None:
        """Read the first rows of each file."""
        kept = self._config.keep_columns
        known: dict[str, tuple[str, Path]] = {}
        for path in self._config.files:
            others = next(self._rows_of(path, every=True)).others or pa.table({})
            found = [*self._config.text_columns, *others.column_names]
            for name in kept or ():
                if name not in found:
                    raise UserError(
                        f"--keep-columns names {name!r}, but the columns of {path.name} are "
                        f"{listing(map(repr, found))}{did_you_mean(name, found)}; give some of them"
                    )
            for field in others.schema:
                if pa.types.is_null(field.type) or (kept is not None and field.name not in kept):
                    continue
                kind, owner = known.setdefault(field.name, (_kind(field), path))
                if kind != _kind(field):
                    raise UserError(
                        f"column {field.name!r} is {kind} in {owner} and {_kind(field)} in {path}, but "
                        "the output has one type for it; write the files alike, or leave the column "
                        "out with --keep-columns"
                    )

    def _batches(self) -> Iterator[Batch]:
        """Yield the rows of all files, numbered across the files."""
        first_row = 0
        for path in self._config.files:
            for batch in self._rows_of(path):
                yield replace(batch, first_row=first_row)
                first_row += len(batch)

    def _rows_of(self, path: Path, *, every: bool = False) -> Iterator[Batch]:
        config = self._config
        return read_rows(
            path,
            config.text_columns,
            None,
            "single_label_classification",
            keep_bad_rows=True,
            text_format=TextFormat(config.delimiter, config.encoding),
            others=None if every else config.keep_columns,
        )

    @property
    def _complete(self) -> Path:
        return self._folder / "raw.json"

    @property
    def rows(self) -> int:
        return int(json.loads(self._complete.read_text())["rows"])

    @property
    def rows_done(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self._done.glob("[0-9]*.parquet"))

    def missing(self) -> list[Path]:
        """Return the paths of raw parts without predictions, in order of rows."""
        return [p for p in sorted(self._raw.iterdir()) if not (self._done / p.name).exists()]

    def store(self, raw: Path, table: pa.Table) -> None:
        """Write the predicted rows of the part `raw`.

        Raises:
            SupersededError: Another job has taken over the output file.
        """
        self._write(table, self._done / raw.name)

    def _write(self, table: pa.Table, path: Path) -> None:
        self._check()
        _write(table, path)

    def assemble(self) -> dict[str, int]:
        """Join all parts into the output file, and delete the parts.

        Returns:
            Counts of `rows`, rows with `errors`, and `truncated_rows`.

        Raises:
            RuntimeError: A row is missing, duplicated or out of order.
            SupersededError: Another job has taken over the output file.
        """
        scratch = self._folder / self._output.name
        counts = {"rows": 0, "errors": 0, "truncated_rows": 0}
        parts = sorted(self._done.glob("[0-9]*.parquet"))
        config = self._config
        names = zip(config.text_columns, ("text", "text_pair"), strict=False)
        texts = {
            column: name if config.keep_columns is None or name in config.keep_columns else None
            for name, column in names
        }
        kinds = json.loads(self._complete.read_text())["kinds"]
        layout = Layout(map(pq.read_schema, parts), kinds, texts)
        with WRITERS[self._output.suffix](scratch, layout.encoded) as writer:
            for path in parts:
                table = pq.read_table(path)
                expected = range(counts["rows"], counts["rows"] + table.num_rows)
                if table["row"].to_pylist() != list(expected):
                    raise RuntimeError(f"{path} does not hold the rows {expected}")
                counts["rows"] += table.num_rows
                counts["errors"] += table.num_rows - table["error"].null_count
                counts["truncated_rows"] += sum(
                    n > 0 for n in table["truncated_tokens"].to_pylist()
                )
                writer.write(layout.arrange(table))
        if counts["rows"] != self.rows:
            raise RuntimeError(f"{counts['rows']} of {self.rows} rows were predicted")
        _sync(scratch)
        self._check()
        scratch.replace(self._output)
        sync_folder(self._output.parent)
        self._check()
        for left in self._output.parent.glob(f".{escape(self._output.name)}-" + "[0-9a-f]" * 16):
            shutil.rmtree(left)  # of this job, and of killed jobs with other flags
        return counts


def _kind(field: pa.Field) -> str:
    return (
        "JSON" if field.metadata and AS_JSON.items() <= field.metadata.items() else str(field.type)
    )


def _write(table: pa.Table, path: Path) -> None:
    scratch = scratch_path(path)
    pq.write_table(table, scratch)
    _sync(scratch)
    scratch.replace(path)
    sync_folder(path.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
