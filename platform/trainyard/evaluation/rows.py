"""Labeled rows that a model is scored on: a task's splits, or the user's file."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trainyard.data import (
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
from trainyard.evaluation.models import Judged, column_order
from trainyard.storage import file_digest
from trainyard.tasks import ProblemType, get_task, own_task

OWN_SPLIT = "validation"


def labeled_splits(config: EvaluatedRows, model: Judged, wanted: Sequence[str] = ()) -> Splits:
    """Read the splits of `--task`, or the file of `--validation-file` with the model's labels.

    `wanted` names the splits. Default: the evaluation splits of the task.

    Raises:
        UserError: when neither flags nor model name a task, the split has no labels, or the model
            does not fit the task.
    """
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
    column_order(model, task)
    return find_splits(config.data(task.name), names)


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
    encoder = LabelEncoder(problem_type, model.labels, f"the model {model.name}")
    for batch in file.batches():  # reports errors in the file before anything starts
        encoder.encode(batch)
    task = own_task(
        text_columns=texts,
        label_column=config.label_column,
        labels=model.labels,
        problem_type=problem_type,
    )
    digest = repr((file_digest(path), texts, config.label_column, problem_type, model.labels))
    return Splits(task, [Split(OWN_SPLIT, digest, partial(file.encoded, encoder))])


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
