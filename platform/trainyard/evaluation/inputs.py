"""Describe a fine-tuned model, and read its labeled rows: a task's splits, or the user's file."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trainyard.config import DataFlags
from trainyard.data import (
    LabelEncoder,
    OwnFile,
    Split,
    Splits,
    TextFormat,
    columns_of,
    default_delimiter,
    default_texts,
    files_of,
    find_splits,
    naming_settings,
    read_rows,
    split_file,
    trained_columns,
)
from trainyard.errors import UserError
from trainyard.evaluation.config import DEFAULT_LENGTH, EvalConfig, EvaluatedRows
from trainyard.metrics import stored_cuts
from trainyard.models import load_config, resolve_model, trained_length
from trainyard.storage import RunFolder
from trainyard.tasks import ProblemType, Task, get_task, own_task

Rows = TypeVar("Rows", bound=EvaluatedRows)

_GENERIC = re.compile(r"LABEL_([0-9]+)")


@dataclass(frozen=True)
class EvaluatedModel:
    """Description of a fine-tuned model from its config, without its weights."""

    name: str
    path: str
    task: str | None
    labels: tuple[str, ...]
    problem_type: str | None
    max_length: int | None
    """Value of `--max-length` in training; None for a model without a run."""
    positions: int | None = None
    """Maximum tokens of the model; None without a maximum."""
    cuts: NDArray[np.float64] | None = field(default=None, compare=False)
    """Stored thresholds as logits, in the order of `labels`; None for a probability of 0.5."""

    @property
    def folder(self) -> Path | None:
        """Local folder; None for a model on the Hub."""
        return Path(self.path) if Path(self.path).is_dir() else None


def describe(name: str) -> EvaluatedModel:
    """Describe a model from its config and, in a run folder, run.json; do not read its weights.

    Raises:
        UserError: The model does not exist, or its stored length or thresholds or its run.json are
            damaged.
    """
    settings = load_config(name)
    path = resolve_model(name)
    labels = tuple(settings.id2label[i] for i in sorted(settings.id2label))
    regression = settings.problem_type == "regression" or len(labels) == 1
    return EvaluatedModel(
        name=name,
        path=path,
        task=getattr(settings, "finetuning_task", None),
        labels=()
        if regression and settings.problem_type != "multi_label_classification"
        else labels,
        problem_type=settings.problem_type or ("regression" if regression else None),
        max_length=trained_length(settings) or _recorded_length(Path(path)),
        positions=getattr(settings, "max_position_embeddings", None),
        cuts=stored_cuts(settings),
    )


def _recorded_length(folder: Path) -> int | None:
    """Read `--max-length` of the model's run; return None without a run.

    Raises:
        UserError: run.json is damaged.
    """
    if not folder.is_dir():
        return None
    run = RunFolder(folder.parent)
    try:
        trained = run.read().get("config")
    except UserError as error:
        raise UserError(
            f"{run.path / 'run.json'} is damaged and does not say which --max-length the model was "
            "trained with; move it away, and give --max-length"
        ) from error
    length: int | None = trained.get("max_length") if isinstance(trained, dict) else None
    return length


def max_length(model: EvaluatedModel, requested: int | None) -> int:
    """Return the maximum tokens per row: `requested`, else the value in training.

    Without either, it is 128, or the model's maximum if that is smaller.
    """
    positions = model.positions or -1  # XLNet says -1
    usual = min(DEFAULT_LENGTH, positions) if positions > 0 else DEFAULT_LENGTH
    return requested or model.max_length or usual


def match_labels(
    labels: Sequence[str], model: EvaluatedModel, given: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """Map each of the rows' `labels` to a label of the model; return None if a label has no match.

    `given` (--label-mapping) is used if the model has all its labels. Otherwise all names must be
    equal, or equal except for case and punctuation, or numbers on one side and LABEL_0, LABEL_1, …
    on the other. No two labels may become equal.
    """
    if given and set(given.values()) <= set(model.labels):
        found = {label: given.get(label, label) for label in labels}
        return found if set(found.values()) <= set(model.labels) else None
    keys: tuple[Callable[[str], str], ...] = (str, _folded, _number)
    for key in keys:
        names = {key(label): label for label in model.labels}
        keyed = {label: key(label) for label in labels}
        distinct = len(names) == len(model.labels) and len(set(keyed.values())) == len(keyed)
        if distinct and set(keyed.values()) <= names.keys():
            return {label: names[key] for label, key in keyed.items()}
    return None


def match_task(
    model: EvaluatedModel, task: Task, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Map the labels of a task to the model's labels, see `match_labels`; empty for a regression.

    A model with the labels LABEL_0, LABEL_1, … has them in the task's order.

    Raises:
        UserError: The model does not fit the task.
    """
    if task.problem_type == "regression" or not task.labels:
        if model.labels:
            raise UserError(
                f"model {model.name} is a classifier ({', '.join(model.labels[:5])}), but task "
                f"'{task.name}' asks for a number; give a model that was fine-tuned on it"
            )
        return {}
    if len(model.labels) == len(task.labels):
        others = not given or set(given.values()).isdisjoint(model.labels)
        if others and all(_GENERIC.fullmatch(label) for label in model.labels):
            return dict(zip(task.labels, model.labels, strict=True))
        found = match_labels(task.labels, model, given)
        if found and len(set(found.values())) == len(found):
            return found
    raise UserError(
        f"model {model.name} answers {', '.join(model.labels[:5]) or 'a number'}, but task "
        f"'{task.name}' has the labels {', '.join(task.labels[:5])}; give a model that was fine-tuned "
        "on it, or --task for another task, or --label-mapping with the model's label for each of these"
    )


def column_order(
    model: EvaluatedModel, task: Task, given: Mapping[str, str] | None = None
) -> list[int]:
    """Return the index of the model's output for each of the task's labels; [0] for a regression.

    Raises:
        UserError: The model does not fit the task.
    """
    found = match_task(model, task, given)
    return [model.labels.index(label) for label in found.values()] or [0]


def with_cuts(task: Task, model: EvaluatedModel, order: Sequence[int]) -> Task:
    """Return the task with the model's stored thresholds, if any, in the `order` of its labels."""
    return task if model.cuts is None else replace(task, cuts=model.cuts[list(order)])


def mapping_note(found: Mapping[str, str]) -> list[str]:
    """Return a note that maps labels of the rows to the model's; empty if all names are equal."""
    if all(label == name for label, name in found.items()):
        return []
    pairs = ", ".join(f"{label} is {name}" for label, name in found.items())
    return [f"note: the labels of the rows are matched with the model's: {pairs}"]


def in_task_order(logits: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """Reorder the columns of logits, shape [rows, labels], to the order of the task's labels."""
    return np.ascontiguousarray(logits[:, order])


def _number(label: str) -> str:
    found = _GENERIC.fullmatch(label)
    return found[1] if found else label


def _folded(label: str) -> str:
    """Fold the case and drop punctuation; keep letters, marks, digits and symbols, such as +."""
    text = unicodedata.normalize("NFKC", label).casefold()
    kept = (c if unicodedata.category(c)[0] in "LMNS" else " " for c in text)
    return " ".join("".join(kept).split())


OWN_SPLIT = "validation"


def with_delimiter(config: Rows, model: EvaluatedModel) -> Rows:
    """Return a copy whose delimiter is set: as given, else as in the model's training.

    Raises:
        UserError: The file or the record of the run cannot be read.
    """
    if not config.validation_file:
        return config
    text_format = TextFormat(config.delimiter, config.encoding)
    file, trained = files_of(config.validation_file)[0], trained_columns(model.path)
    return replace(config, delimiter=default_delimiter(file, text_format, trained))


def labeled_splits(
    config: EvaluatedRows, model: EvaluatedModel, wanted: Sequence[str] = ()
) -> Splits:
    """Read the splits of `--task`, or the file of `--validation-file` with the model's labels.

    `wanted` names the splits. Default: the evaluation splits of the task.

    Raises:
        UserError: Neither flags nor model name a task, a split is unknown or has no labels, or the
            model does not fit the task.
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


def _own_file(config: EvaluatedRows, model: EvaluatedModel) -> Splits:
    text_format = TextFormat(config.delimiter, config.encoding)
    texts, label_column = _columns(config, model, text_format)
    problem_type = cast("ProblemType", model.problem_type or "single_label_classification")
    path = Path(config.validation_file or "")
    file = OwnFile(path, texts, label_column, problem_type, text_format, class_names=True)
    # Models of early releases have class ids as labels.
    by_name = any(name in model.labels for name in file.label_order())
    file = replace(file, class_names=by_name)
    with naming_settings(config, files_of(str(path)), texts, label_column):
        encoder, notes = _encoder(file, model, config.label_mapping)
    task = own_task(
        text_columns=texts,
        label_column=label_column,
        labels=model.labels,
        problem_type=problem_type,
    )
    parts = (file.digest, texts, label_column, problem_type, model.labels)
    digest = repr((*parts, *sorted(encoder.aliases.items()))) if notes else repr(parts)
    return Splits(task, [Split(OWN_SPLIT, digest, partial(file.encoded, encoder))], notes)


def _columns(
    config: EvaluatedRows, model: EvaluatedModel, text_format: TextFormat
) -> tuple[tuple[str, ...], str]:
    """Return the columns of the texts and of the label, by default as in the model's training.

    Raises:
        UserError: The model was trained on pairs, and the file has no column of the second text.
            Or the file or the record of the run cannot be read.
    """
    pattern, trained = config.validation_file or "", trained_columns(model.path)
    given = (config.text_column, config.text_pair_column)
    if trained is None:
        return default_texts(pattern, [], given, None), config.label_column
    found = columns_of(str(files_of(pattern)[0]), text_format)
    label = config.label_column
    if label == DataFlags.label_column and label not in found and trained.label in found:
        label = trained.label
    return default_texts(pattern, found, given, trained), label


def _encoder(
    file: OwnFile, model: EvaluatedModel, given: Mapping[str, str] | None
) -> tuple[LabelEncoder, list[str]]:
    """Read the file once, and return an encoder to the model's labels, with notes for the user.

    Raises:
        UserError: A row cannot be used, or a label has no match among the model's labels.
    """
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
    encoder = LabelEncoder(file.problem_type, model.labels, source, names)
    for batch in file.batches() if mapping is None else ():
        encoder.encode(batch)  # names the row of the label that has no match
    return encoder, mapping_note(names)


def texts_of(splits: Splits, name: str, rows: Sequence[int]) -> Mapping[int, dict[str, Any]]:
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
    """Read the values of `--slice-columns` in a split, as strings by column.

    Rows without a value form a group, EMPTY.

    Raises:
        UserError: The data is not a file, or a column cannot be used.
    """
    return {
        column: _column(config, splits, name, column, "--slice-columns")
        for column in config.slice_columns
    }


def group_of_rows(config: EvalConfig, splits: Splits, name: str) -> NDArray[Any] | None:
    """Read the values of `--group-column` in a split, shape [rows]; return None without the flag.

    Rows without a value form a group, EMPTY.

    Raises:
        UserError: The data is not a file, or the column cannot be used.
    """
    if config.group_column is None:
        return None
    return np.asarray(_column(config, splits, name, config.group_column, "--group-column"))


def _column(config: EvalConfig, splits: Splits, name: str, column: str, flag: str) -> list[str]:
    if config.validation_file:
        paths = files_of(config.validation_file)
    elif config.data_dir:
        paths = (split_file(splits.task, name, Path(config.data_dir)),)
    else:
        raise UserError(f"{flag} needs a file: give --data-dir or --validation-file")
    text_format = TextFormat(config.delimiter, config.encoding)
    try:
        return [
            value
            for path in paths
            for batch in read_rows(path, (), column, None, text_format=text_format, label_flag=flag)
            for value in batch.labels or []
        ]
    except UserError as error:
        raise UserError(f"{flag} {column}: {error}") from error
