"""Read the user's own files as a task: labels from the training file, held-out rows if needed."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import DataFlags
from trainyard.data.columns import Batch, TextFormat, did_you_mean, listing
from trainyard.data.detect import naming_settings
from trainyard.data.files import check_file, files_of, read_rows
from trainyard.data.held_out import VERSIONS, Parts, normalize_text, text_hashes
from trainyard.data.labels import LabelEncoder, discover_labels
from trainyard.data.parquet_files import class_label_names
from trainyard.data.tables import hub_files
from trainyard.errors import UserError
from trainyard.storage import file_digest
from trainyard.tasks import ProblemType, Task, own_task

if TYPE_CHECKING:
    import pyarrow as pa

_SEPARATORS = (",", ";", "#", "/", "\t", "\n")
"""Separators that other programs write between the names of a list, instead of |."""
HELD_OUT = 0.1
"""Fraction of the training rows held out when there is no validation file."""


@dataclass(frozen=True)
class OwnFile:
    """The user's data file, or several files read as one, with reading options.

    Each method reads the files again.
    """

    path: Path
    """File, or a pattern that `files_of` resolves."""
    text_columns: tuple[str, ...]
    label_column: str
    problem_type: ProblemType
    text_format: TextFormat
    class_names: bool = False
    """See `Columns`."""
    text_lists: bool = True
    """See `canonical_labels`."""
    drop_labels: tuple[str, ...] = ()
    merge_similar_labels: bool = False

    def batches(self, dropped: set[str | float] | None = None) -> Iterator[Batch]:
        """Yield the rows without a label in `drop_labels`; add each label found there to `dropped`.

        Raises:
            UserError: A file or a row cannot be used.
        """
        dropped = set() if dropped is None else dropped
        first_row = 0
        for path in files_of(str(self.path)):
            for batch in read_rows(
                path,
                self.text_columns,
                self.label_column,
                self.problem_type,
                text_format=self.text_format,
                class_names=self.class_names,
                text_lists=self.text_lists,
            ):
                kept = self._without_dropped(batch, dropped)
                if len(kept):
                    yield replace(kept, first_row=first_row)
                first_row += len(kept)

    @property
    def digest(self) -> str:
        return " ".join(file_digest(path) for path in files_of(str(self.path)))

    def _without_dropped(self, batch: Batch, dropped: set[str | float]) -> Batch:
        import pyarrow as pa

        labels = batch.labels or []
        if self.merge_similar_labels and self.problem_type != "regression":
            labels = [
                list(dict.fromkeys(map(fold_label, label)))
                if isinstance(label, list)
                else fold_label(label)
                for label in labels
            ]
            batch = replace(batch, labels=labels)
        unwanted = {self.canonical(name) for name in self.drop_labels}
        rows = []
        for row, label in enumerate(labels):
            found = unwanted.intersection(label if isinstance(label, list) else [label])
            dropped |= found
            if not found:
                rows.append(row)
        if len(rows) == len(labels):
            return batch
        indices = pa.array(rows, pa.int64())
        return replace(
            batch,
            places=[batch.places[row] for row in rows],
            texts=tuple(text.take(indices) for text in batch.texts),
            labels=[labels[row] for row in rows],
        )

    def canonical(self, name: str) -> str | float:
        """Convert a value of --drop-labels to the form of the labels of rows.

        Raises:
            UserError: The task is a regression, and the value is not a number.
        """
        if self.problem_type == "regression":
            try:
                return float(name)
            except ValueError:
                raise UserError(
                    f"--drop-labels {name} is not a number, but --problem-type is regression; give numbers"
                ) from None
        return fold_label(name) if self.merge_similar_labels else name

    def label_order(self) -> Sequence[str]:
        """Return the label names stored in the first file, in the order of class ids.

        The result is empty if `class_names` is False, or if the file is not Parquet or stores no
        names.

        Raises:
            UserError: No file matches the pattern, or the Parquet file is absent or damaged.
        """
        first = files_of(str(self.path))[0]
        if not self.class_names or first.suffix.lower() != ".parquet":
            return ()
        check_file(first)
        return class_label_names(first, self.label_column)

    @property
    def options(self) -> tuple[Any, ...]:
        """Reading options in the fingerprint; empty if rows are read as in commit 29a2e37."""
        options = (self.text_format, self.drop_labels, self.merge_similar_labels)
        several = self.problem_type == "multi_label_classification"
        return (
            *(() if options == (TextFormat(), (), False) else options),
            *(["without invisible characters"] if self.merge_similar_labels else []),
            *(["class names"] if self.label_order() else []),
            *(["lists in text"] if self.text_lists and several else []),
        )

    def encoded(
        self, encoder: LabelEncoder, rows: NDArray[np.int64] | None = None
    ) -> "Iterator[pa.RecordBatch]":
        """Yield canonical record batches of all rows, or of the ascending row indices `rows`.

        Raises:
            UserError: A file, a row or a label cannot be used.
        """
        import pyarrow as pa

        for batch in self.batches():
            table = batch.to_arrow(encoder.encode(batch)).drop_columns(["row"])
            if rows is not None:
                low, high = np.searchsorted(rows, [batch.first_row, batch.first_row + len(batch)])
                table = table.take(pa.array(rows[low:high] - batch.first_row))
            yield table


@dataclass(frozen=True)
class OwnData:
    """Result of `survey`: the task, the label encoder, the files, and notes for the user."""

    task: Task
    encoder: LabelEncoder
    train: OwnFile
    validation: OwnFile | None
    test: OwnFile | None
    notes: tuple[str, ...]
    fingerprint: str


def survey(config: DataFlags) -> OwnData:
    """Read and check all files once, before a run starts.

    Raises:
        UserError: A file or a row cannot be used, or no training row has a text. The message names
            the file, the line and the fix.
    """
    texts = tuple(c for c in (config.text_column or "text", config.text_pair_column) if c)
    problem_type = config.problem_type or "single_label_classification"
    read = partial(
        OwnFile,
        text_columns=texts,
        label_column=config.label_column,
        problem_type=problem_type,
        text_format=TextFormat(config.delimiter, config.encoding),
        class_names=config.split_rules > 1 and problem_type != "regression",
        text_lists=config.split_rules > 1,
        drop_labels=tuple(config.drop_labels),
        merge_similar_labels=config.merge_similar_labels,
    )
    files = config.train_file or "", config.validation_file
    if config.dataset_name:
        files = hub_files(config.dataset_name, config.dataset_config_name)
    train = read(Path(files[0]))
    notes: list[str] = []
    dropped: set[str | float] = set()
    rows = _counting_empty(train, notes, dropped, learned=True)
    validation, test = (
        read(Path(path)) if path else None for path in (files[1], config.test_rows[0])
    )
    paths = [
        path for file in (train, validation, test) if file for path in files_of(str(file.path))
    ]
    with naming_settings(config, paths, texts, config.label_column):
        encoder = discover_labels(rows, problem_type, train.label_order())
        for _ in rows:  # a regression has no names to discover, but its rows are checked too
            pass
        for further in (validation, test):
            for batch in _counting_empty(further, notes, dropped) if further else ():
                encoder.encode(batch)
    notes += _label_warnings(encoder)
    notes += [
        f"warning: --drop-labels {name}: no row has this label"
        f"{did_you_mean(name, encoder.names) or '; correct it, or leave it out'}"
        for name in config.drop_labels
        if train.canonical(name) not in dropped
    ]
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
        repr((train.digest, texts, config.label_column, problem_type, *train.options)),
    )


def held_out_rows(data: OwnData, seed: int, version: int) -> Parts:
    """Hold out a tenth (HELD_OUT) of the rows of the training file.

    Args:
        data: Result of `survey`.
        seed: Seed of the draw.
        version: Split version, a key of `held_out.VERSIONS`.

    Returns:
        Ascending indices of the rows to train on, and of the held-out rows.

    Raises:
        UserError: A file or a row cannot be used, or no row can be held out.
    """
    labels, texts = [], []
    for batch in data.train.batches():
        labels.append(np.asarray(data.encoder.encode(batch).to_pylist()))
        texts.append(text_hashes(*(text.to_pylist() for text in batch.texts)))
    hashes = np.concatenate(texts)
    if version > 1 and len(hashes) > 1 and (hashes == hashes[0]).all():
        raise UserError(
            f"no validation rows can be held out of {len(hashes)} training rows, because all texts of "
            f"{_columns_of(data.train)} are the same; name the column of texts with --text-column"
        )
    return VERSIONS[version](np.concatenate(labels), hashes, HELD_OUT, seed)


def _columns_of(file: OwnFile) -> str:
    columns = "column" if len(file.text_columns) == 1 else "columns"
    return f"{columns} {listing(map(repr, file.text_columns))}"


def _label_warnings(encoder: LabelEncoder) -> list[str]:
    if encoder.problem_type == "regression":
        return []
    groups: dict[str, list[str]] = {}
    for name in encoder.names:
        groups.setdefault(fold_label(name), []).append(name)
    found = [
        f"warning: the labels {listing(map(repr, names))} of {encoder.source} differ only by case, "
        "spaces, invisible characters or Unicode form; --merge-similar-labels makes them one"
        for names in groups.values()
        if len(names) > 1
    ]
    found += _joined_names(encoder)
    if "-1" in encoder.names:
        found.append(
            f"warning: -1 is a label in {encoder.source}, where it often means unlabeled; "
            "--drop-labels -1 leaves these rows out"
        )
    return found


def _joined_names(encoder: LabelEncoder) -> Iterator[str]:
    """Yield warnings about names that consist of other names, likely lists not separated by |."""
    several = encoder.problem_type == "multi_label_classification"
    remedy = "" if several else "add --problem-type multi_label_classification, and "
    for separator in _SEPARATORS if several else ("|", *_SEPARATORS):
        parts = {name: [p.strip() for p in name.split(separator)] for name in encoder.names}
        occurrences = Counter(part for found in parts.values() for part in set(found))
        for name, found in parts.items():
            if len(found) > 1 and all(part and occurrences[part] > 1 for part in found):
                yield (
                    f"warning: the label {name!r} of {encoder.source} is made of other labels; if it "
                    f"is a list, {remedy}separate the names of a row by |"
                )
                break


def fold_label(name: str) -> str:
    """Remove invisible characters (Unicode category Cf) from a label name, and normalize it."""
    return normalize_text("".join(c for c in name if unicodedata.category(c) != "Cf"))


def _counting_empty(
    file: OwnFile, notes: list[str], dropped: set[str | float], *, learned: bool = False
) -> Iterator[Batch]:
    rows = empty = 0
    for batch in file.batches(dropped):
        rows, empty = rows + len(batch), empty + batch.empty_texts
        yield batch
    if not rows:
        raise UserError(
            f"{file.path.name}: every row has a label of --drop-labels "
            f"({', '.join(file.drop_labels)}), expected rows with other labels; add some, or leave "
            "the file out"
        )
    if learned and empty == rows * len(file.text_columns):
        raise UserError(
            f"{file.path.name}: all {empty} texts of {_columns_of(file)} are empty; name the column of "
            "texts with --text-column"
        )
    if empty:
        notes.append(f"{file.path.name}: {empty} empty text(s) in {rows} rows; they are kept")
