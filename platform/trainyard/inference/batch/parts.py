"""Rows of one batch inference job on disk: raw parts, done parts and the output file.

    .scores.jsonl-lease.json                  lease of the writer of scores.jsonl
    .scores.jsonl-3f1c…/raw/000000.parquet    row, text, text_pair, error
    .scores.jsonl-3f1c…/done/000000.parquet   the same rows with their predictions

Parts are written atomically. The folder's name contains the job's identity, a hash, so another model
or input file never reuses its parts. The next job that finishes removes it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.data import Batch, TextFormat, read_rows
from trainyard.errors import UserError
from trainyard.inference.batch.config import PredictConfig
from trainyard.storage import Disk, Lease, scratch_path, sync_folder, write_json

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_PART = 4_096
"""Rows per part: the most that a killed job has to predict again."""


class Parts:
    """Parts of one job, in a hidden folder next to its output file."""

    def __init__(self, config: PredictConfig) -> None:
        output = Path(config.output_file).absolute()
        if not output.parent.is_dir():
            raise UserError(
                f"the folder {output.parent} of --output-file does not exist; create it"
            )
        self._config = config
        next(self._batches())  # reports a wrong file name or column before any work
        self._output = output
        self._folder = output.with_name(f".{output.name}-{config.identity()}")
        self._raw, self._done = self._folder / "raw", self._folder / "done"

    def lease(self) -> Lease:
        """Build the lease on the output file: one job at a time writes it."""
        name = f".{self._output.name}-lease.json"
        what, remedy = f"--output-file {self._output}", "choose another --output-file"
        return Lease(Disk(self._output.parent), name, what, remedy=remedy)

    def read(self) -> None:
        """Split the input into raw parts, unless they exist; reads the whole file.

        Invalid rows are kept with their error.

        Raises:
            UserError: with file, line and fix.
        """
        import pyarrow as pa

        if self._complete.exists():
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._raw, self._done):
            folder.mkdir(parents=True)
        rows = number = 0
        try:
            for batch in self._batches():
                errors = pa.array(map(batch.errors.get, range(len(batch))), pa.string())
                table = pa.Table.from_batches([batch.to_arrow(None)]).append_column("error", errors)
                for start in range(0, table.num_rows, ROWS_PER_PART):
                    part = table.slice(start, ROWS_PER_PART)
                    _write(part, self._raw / f"{number:06d}.parquet")
                    rows, number = rows + part.num_rows, number + 1
        except UserError:
            shutil.rmtree(self._folder)
            raise
        write_json(self._complete, {"rows": rows})

    def _batches(self) -> Iterator[Batch]:
        config = self._config
        columns = [c for c in (config.text_column, config.text_pair_column) if c is not None]
        return read_rows(
            config.input_file,
            columns,
            None,
            "single_label_classification",
            keep_bad_rows=True,
            text_format=TextFormat(config.delimiter, config.encoding),
        )

    @property
    def _complete(self) -> Path:
        return self._folder / "raw.json"

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return int(json.loads(self._complete.read_text())["rows"])

    @property
    def rows_done(self) -> int:
        """Rows stored by earlier attempts."""
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in self._done.glob("[0-9]*.parquet"))

    def missing(self) -> list[Path]:
        """Raw parts without predictions, in order."""
        return [p for p in sorted(self._raw.iterdir()) if not (self._done / p.name).exists()]

    def store(self, raw: Path, table: "pa.Table") -> None:
        """Store the predictions of a raw part."""
        _write(table, self._done / raw.name)

    def assemble(self) -> dict[str, int]:
        """Join all parts into the output file and delete them; returns counts of rows.

        Raises:
            RuntimeError: if a row is missing, duplicated or out of order.
        """
        import pyarrow.parquet as pq

        scratch = self._folder / self._output.name
        counts = {"rows": 0, "errors": 0, "truncated_rows": 0}
        with WRITERS[self._output.suffix](scratch) as writer:
            for path in sorted(self._done.glob("[0-9]*.parquet")):
                table = pq.read_table(path)
                expected = range(counts["rows"], counts["rows"] + table.num_rows)
                if table["row"].to_pylist() != list(expected):
                    raise RuntimeError(f"{path} does not hold the rows {expected}")
                counts["rows"] += table.num_rows
                counts["errors"] += table.num_rows - table["error"].null_count
                counts["truncated_rows"] += sum(
                    n > 0 for n in table["truncated_tokens"].to_pylist()
                )
                writer.write(table)
        if counts["rows"] != self.rows:
            raise RuntimeError(f"{counts['rows']} of {self.rows} rows were predicted")
        _sync(scratch)
        scratch.replace(self._output)
        sync_folder(self._output.parent)
        for left in self._output.parent.glob(f".{escape(self._output.name)}-" + "[0-9a-f]" * 16):
            shutil.rmtree(left)  # this job's, and those of killed jobs whose flags changed
        return counts


def _write(table: "pa.Table", path: Path) -> None:
    import pyarrow.parquet as pq

    scratch = scratch_path(path)
    pq.write_table(table, scratch)
    _sync(scratch)
    scratch.replace(path)
    sync_folder(path.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class JsonlWriter:
    """Writer of one JSON object per line; nested answers stay nested."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, table: "pa.Table") -> None:
        """Append rows; empty fields are left out."""
        for line in self._lines(table):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    @staticmethod
    def _lines(table: "pa.Table") -> Iterator[dict[str, Any]]:
        for row in table.to_pylist():
            if row.get("prediction") is not None:
                row["prediction"] = json.loads(row["prediction"])
            yield {name: value for name, value in row.items() if value is not None}


class ParquetWriter:
    """Writer of typed columns; answers without a fixed type become JSON texts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def __enter__(self) -> "ParquetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, table: "pa.Table") -> None:
        """Append rows."""
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)


WRITERS: dict[str, type[JsonlWriter] | type[ParquetWriter]] = {
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}
