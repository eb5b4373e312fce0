"""The user's own files as a task: labels from the training file, a held-out part if needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainyard.data.columns import Batch, TextFormat
from trainyard.data.files import read_rows
from trainyard.data.held_out import VERSIONS, Parts, text_hashes
from trainyard.data.labels import LabelEncoder, discover_labels
from trainyard.flags import DataFlags
from trainyard.storage import file_digest
from trainyard.tasks import ProblemType, Task, own_task

if TYPE_CHECKING:
    import pyarrow as pa

HELD_OUT = 0.1
"""Fraction of the training rows held out when there is no validation file."""


@dataclass(frozen=True)
class OwnFile:
    """One file read with one set of columns; the stream can be restarted."""

    path: Path
    text_columns: tuple[str, ...]
    label_column: str
    problem_type: ProblemType
    text_format: TextFormat

    def batches(self) -> Iterator[Batch]:
        """Yield the rows."""
        return read_rows(
            self.path,
            self.text_columns,
            self.label_column,
            self.problem_type,
            text_format=self.text_format,
        )

    def encoded(
        self, encoder: LabelEncoder, rows: NDArray[np.int64] | None = None
    ) -> "Iterator[pa.RecordBatch]":
        """Yield canonical record batches of all rows, or of the row positions in `rows`."""
        import pyarrow as pa

        for batch in self.batches():
            table = batch.to_arrow(encoder.encode(batch)).drop_columns(["row"])
            if rows is not None:
                low, high = np.searchsorted(rows, [batch.first_row, batch.first_row + len(batch)])
                table = table.take(pa.array(rows[low:high] - batch.first_row))
            yield table


@dataclass(frozen=True)
class OwnData:
    """The task, label encoder and files found by `survey`, and notes for the user."""

    task: Task
    encoder: LabelEncoder
    train: OwnFile
    validation: OwnFile | None
    test: OwnFile | None
    notes: tuple[str, ...]
    fingerprint: str


def survey(config: DataFlags) -> OwnData:
    """Read the training file once, so that its faults are reported before anything starts.

    Raises:
        UserError: A file or row cannot be used; names the file, the line and the fix.
    """
    texts = tuple(c for c in (config.text_column or "text", config.text_pair_column) if c)
    problem_type = config.problem_type or "single_label_classification"
    text_format = TextFormat(config.delimiter, config.encoding)
    train = OwnFile(
        Path(config.train_file or ""), texts, config.label_column, problem_type, text_format
    )
    notes: list[str] = []
    rows = _counting_empty(train, notes)
    encoder = discover_labels(rows, problem_type)
    for _ in rows:  # a regression has no labels to discover, but its rows are checked too
        pass
    validation, test = (
        OwnFile(Path(path), texts, config.label_column, problem_type, text_format) if path else None
        for path in (config.validation_file, config.test_rows[0])
    )
    for further in (validation, test):
        for batch in _counting_empty(further, notes) if further else ():
            encoder.encode(batch)
    task = own_task(
        text_columns=texts,
        label_column=config.label_column,
        labels=encoder.names,
        problem_type=problem_type,
    )
    return OwnData(
        task,
        encoder,
        train,
        validation,
        test,
        tuple(notes),
        repr((file_digest(train.path), texts, config.label_column, problem_type)),
    )


def held_out_rows(data: OwnData, seed: int, version: int) -> Parts:
    """Draw the held-out rows by a split version (see `held_out`).

    Raises:
        UserError: Too few rows to hold any out.
    """
    labels, texts = [], []
    for batch in data.train.batches():
        labels.append(np.asarray(data.encoder.encode(batch).to_pylist()))
        texts.append(text_hashes(batch))
    return VERSIONS[version](np.concatenate(labels), np.concatenate(texts), HELD_OUT, seed)


def _counting_empty(file: OwnFile, notes: list[str]) -> Iterator[Batch]:
    rows = empty = 0
    for batch in file.batches():
        rows, empty = rows + len(batch), empty + batch.empty_texts
        yield batch
    if empty:
        notes.append(f"{file.path.name}: {empty} empty text(s) in {rows} rows; they are kept")
