"""Labeled rows that a model is scored on: a task's splits, or the user's file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from trainyard.data import (
    Batch,
    LabelEncoder,
    OwnFile,
    Split,
    Splits,
    TextFormat,
    class_label_names,
    find_splits,
    read_rows,
    split_file,
)
from trainyard.errors import UserError
from trainyard.evaluation.config import EvalConfig, EvaluatedRows
from trainyard.evaluation.models import Judged, mapping_note, match_labels, match_task
from trainyard.storage import file_digest
from trainyard.tasks import ProblemType, get_task, own_task

if TYPE_CHECKING:
    import pyarrow as pa

OWN_SPLIT = "validation"


def labeled_splits(config: EvaluatedRows, model: Judged, wanted: Sequence[str] = ()) -> Splits:
    """Read the splits of `--task`, or the file of `--validation-file` with the model's labels.

    `wanted` names the splits. Default: the evaluation splits of the task.

    Raises:
        UserError: when neither flags nor model name a task, the split has no labels, or the model
            does not fit the task.
    """
    unknown = set((config.label_mapping or {}).values()) - set(model.labels)
    if unknown:
        raise UserError(
            f"--label-mapping names the label {min(unknown)}, but model {model.name} answers "
            f"{', '.join(model.labels[:5]) or 'a number'}; give a label of the rows and then one of these"
        )
    if config.validation_file:
        return _own_file(config, model)
    name = config.task or model.task
    if name in (None, "own"):
        raise UserError(
            f"model {model.name} does not say which task it was fine-tuned on; give --task, or your "
            "own --validation-file"
        )
    task = get_task(name)
    names = wanted or task.evaluation_splits
    if not names:
        raise UserError(f"task '{task.name}' has no split with labels; it can only be predicted")
    known = (*(name for name in [task.train_split] if name), *task.evaluation_splits)
    for split in names:
        if split not in (*known, *task.test_splits):
            raise UserError(
                f"--splits {split}: task '{task.name}' has no such split; it has "
                f"{', '.join((*known, *task.test_splits))}"
            )
    found = match_task(model, task, config.label_mapping)
    splits = find_splits(config.data(task.name), names)
    return replace(splits, notes=(*splits.notes, *mapping_note(found)))


def _own_file(config: EvaluatedRows, model: Judged) -> Splits:
    texts = tuple(c for c in (config.text_column or "text", config.text_pair_column) if c)
    problem_type = cast("ProblemType", model.problem_type or "single_label_classification")
    path = Path(config.validation_file or "")
    text_format = TextFormat(config.delimiter, config.encoding)
    names = (
        class_label_names(path, config.label_column)
        if path.suffix == ".parquet" and path.is_file()
        else ()
    )
    # A model of the first version has class ids as its labels.
    by_name = any(name in model.labels for name in names)
    file = OwnFile(path, texts, config.label_column, problem_type, text_format, by_name)
    encoder, notes = _encoder(file, model, config.label_mapping)
    task = own_task(
        text_columns=texts,
        label_column=config.label_column,
        labels=model.labels,
        problem_type=problem_type,
    )
    parts = (file_digest(path), texts, config.label_column, problem_type, model.labels)
    digest = repr((*parts, *sorted(encoder.mapping.items()))) if notes else repr(parts)
    return Splits(task, [Split(OWN_SPLIT, digest, partial(file.encoded, encoder))], notes)


@dataclass(frozen=True)
class _MappedLabels(LabelEncoder):
    """Encoder of labels that a mapping translates to the model's."""

    mapping: Mapping[str, str]

    def encode(self, batch: Batch) -> "pa.Array":
        """Encode the model's names of the labels."""
        name = self.mapping.get
        labels = [
            [name(each, each) for each in label] if isinstance(label, list) else name(label, label)
            for label in batch.labels or []
        ]
        return LabelEncoder.encode(self, replace(batch, labels=labels))


def _encoder(
    file: OwnFile, model: Judged, given: Mapping[str, str] | None
) -> tuple[_MappedLabels, list[str]]:
    """Read the file once, which reports its faults, and match its labels with the model's."""
    found: dict[str, None] = {}
    for batch in file.batches():
        for label in batch.labels or []:
            found |= dict.fromkeys(label if isinstance(label, list) else [label])
    known = file.problem_type == "regression"
    mapping = {} if known else match_labels(list(found), model, given)
    if mapping is None and not given and found.keys().isdisjoint(model.labels):
        raise UserError(
            f"{file.path.name} has the labels {', '.join(list(found)[:5])}, but the model {model.name} "
            f"answers {', '.join(model.labels[:5])}; give --label-mapping with the model's label for "
            f"each, as in --label-mapping {next(iter(found))} {model.labels[0]}"
        )
    source = f"the model {model.name}"
    names = (given or {}) if mapping is None else mapping
    encoder = _MappedLabels(file.problem_type, model.labels, source, names)
    for batch in file.batches() if mapping is None else ():
        encoder.encode(batch)  # names the row of the label that has no match
    return encoder, mapping_note(names)


def texts_of(splits: Splits, name: str, rows: Sequence[int]) -> Mapping[int, dict[str, Any]]:
    """Read the texts of a few rows of a split, by row."""
    wanted = np.asarray(sorted(rows), np.int64)
    found: dict[int, dict[str, Any]] = {}
    first = 0
    (split,) = (split for split in splits.splits if split.name == name)
    for batch in split.batches():
        low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
        for row in wanted[low:high]:
            found[int(row)] = {
                column: batch[column][int(row) - first].as_py()
                for column in ("text", "text_pair")
                if column in batch.schema.names
            }
        first += batch.num_rows
    return found


def extra_columns(config: EvalConfig, splits: Splits, name: str) -> dict[str, list[str]]:
    """Read `--slice-columns` of a split, as names, like a column of labels.

    Raises:
        UserError: without --validation-file, or for a missing value.
    """
    return {
        column: _column(config, splits, name, column, "--slice-columns")
        for column in config.slice_columns
    }


def group_of_rows(config: EvalConfig, splits: Splits, name: str) -> NDArray[Any] | None:
    """Read `--group-column` of a split; None without the flag.

    Raises:
        UserError: as `extra_columns`.
    """
    if config.group_column is None:
        return None
    return np.asarray(_column(config, splits, name, config.group_column, "--group-column"))


def _column(config: EvalConfig, splits: Splits, name: str, column: str, flag: str) -> list[str]:
    if config.validation_file:
        path = Path(config.validation_file)
    elif config.data_dir:
        path = split_file(splits.task, name, Path(config.data_dir))
    else:
        raise UserError(f"{flag} needs a file: give --data-dir or --validation-file")
    text_format = TextFormat(config.delimiter, config.encoding)
    try:
        batches = read_rows(
            path, (), column, "single_label_classification", text_format=text_format
        )
        return [str(value) for batch in batches for value in batch.labels or []]
    except UserError as error:
        raise UserError(f"{flag} {column}: {error}") from error
