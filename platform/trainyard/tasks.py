"""Table of tasks: an entry holds the columns, labels, metrics and splits of one task."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainyard.errors import UserError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
"""Commit of nyu-mll/glue on the Hub to which the row counts below belong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Data set with its columns, labels, metrics and splits."""

    name: str
    """Name for flags, folders and reports."""
    text_columns: tuple[str, ...]
    """Column of the text, or the two columns of a text pair."""
    label_column: str = "label"
    """Column of the class index (single-label), the list of labels (multi-label) or the target."""
    labels: tuple[str, ...]
    """Names of the classes in the order of their indices; empty for regression."""
    problem_type: ProblemType = "single_label_classification"
    """Kind of prediction, by the names of transformers' `problem_type`."""
    metrics: tuple[str, ...]
    """Names of the metrics, keys of `trainyard.metrics.METRICS`."""
    score: str
    """Headline metric, one of `metrics`. A model's score is its mean over `evaluation_splits`."""
    train_split: str | None = "train"
    """Split to train on; None for a task without training data."""
    evaluation_splits: tuple[str, ...] = ("validation",)
    """Splits with labels, on which a model is evaluated."""
    test_splits: tuple[str, ...] = ("test",)
    """Splits whose labels are withheld or must not be used to choose a model."""
    hub_path: str | None = "nyu-mll/glue"
    """Data set on the Hub; None for data that is generated or the user's own."""
    hub_config: str | None = None
    """Configuration of the data set on the Hub."""
    hub_revision: str | None = GLUE_REVISION
    """Commit of the data set on the Hub."""
    rows: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Official number of rows of each split; empty for data without official numbers."""
    cuts: Any = field(default=0.0, compare=False)
    """Thresholds of a multi-label task, as logits: one number, or [labels], or [rows, labels]."""

    @property
    def num_labels(self) -> int:
        """Number of outputs of the model's head: one per label, or 1 for a regression."""
        return len(self.labels) or 1


# Columns, labels and row counts come from the data set's card, the metrics from GLUE (Wang et al.
# 2019, table 1). If GLUE's headline averages two metrics, the score is the stricter one: f1 for
# unbalanced classes, rank correlation for similarity.
_ENTAILMENT = ("entailment", "neutral", "contradiction")

_SIMILAR = ("not_equivalent", "equivalent")


def _glue(
    name: str,
    text_columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    rows: Mapping[str, int],
    **others: Any,
) -> Task:
    """Build the task of a GLUE data set; the last of `metrics` is its score."""
    return Task(
        name=name,
        text_columns=text_columns,
        labels=labels,
        metrics=metrics,
        score=metrics[-1],
        hub_config=name,
        rows=rows,
        **others,
    )


def _rows(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",),
              _rows(8_551, 1_043, 1_063)),
        _glue("sst2", ("sentence",), ("negative", "positive"), ("accuracy",),
              _rows(67_349, 872, 1_821)),
        _glue("mrpc", ("sentence1", "sentence2"), _SIMILAR, ("accuracy", "f1"),
              _rows(3_668, 408, 1_725)),
        _glue("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearmanr"),
              _rows(5_749, 1_500, 1_379), problem_type="regression"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"),
              _rows(363_846, 40_430, 390_965)),
        _glue("mnli", ("premise", "hypothesis"), _ENTAILMENT, ("accuracy",),
              {"train": 392_702, "validation_matched": 9_815, "validation_mismatched": 9_832,
               "test_matched": 9_796, "test_mismatched": 9_847},
              evaluation_splits=("validation_matched", "validation_mismatched"),
              test_splits=("test_matched", "test_mismatched")),
        _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",),
              _rows(104_743, 5_463, 5_463)),
        _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",),
              _rows(2_490, 277, 3_000)),
        _glue("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",),
              _rows(635, 71, 146)),
        _glue("ax", ("premise", "hypothesis"), _ENTAILMENT, ("matthews_correlation",),
              {"test": 1_104}, train_split=None, evaluation_splits=()),
        Task(
            name="demo",
            text_columns=("sentence1", "sentence2"),
            labels=_SIMILAR,
            metrics=("accuracy", "f1"),
            score="accuracy",
            test_splits=(),
            hub_path=None,
            hub_revision=None,
        ),
    )
}  # fmt: skip


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UserError: No task has this name. The message suggests the closest name and lists all names.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name.casefold(), TASKS, n=1)
    hint = f"did you mean '{near[0]}'? Known tasks: " if near else "known tasks: "
    raise UserError(f"unknown task '{name}'; {hint}{', '.join(TASKS)}")


def check_data_dir(task: Task, data_dir: str | None) -> None:
    """Refuse --data-dir for a task with generated rows, which would ignore it.

    Raises:
        UserError: `data_dir` is set, but the rows of the task are generated.
    """
    if data_dir and task.hub_path is None:
        raise UserError(
            f"--data-dir {data_dir} would not be read: the rows of task '{task.name}' are generated; "
            "give another --task, or leave it out"
        )


def own_task(
    *,
    text_columns: Sequence[str],
    label_column: str,
    labels: Sequence[str],
    problem_type: ProblemType,
) -> Task:
    """Build the task of the user's own files, with the usual metrics of its problem type.

    If there are exactly two classes, the second is the positive class, as in GLUE.

    Raises:
        UserError: A regression has labels, or a classification has too few.
    """
    if problem_type == "regression" and labels:
        raise UserError(
            f"a regression predicts a number, but {len(labels)} labels were given "
            f"({', '.join(labels[:3])}); leave them out, or classify"
        )
    if problem_type == "single_label_classification" and len(labels) < 2:
        raise UserError(
            f"{len(labels)} different labels were found, but a classification needs at least 2; "
            f"check the column '{label_column}'"
        )
    if problem_type == "multi_label_classification" and not labels:
        raise UserError(
            "no labels were found, but a multi-label classification needs at least 1; "
            f"check the column '{label_column}'"
        )
    metrics, score = _OWN_METRICS[problem_type]
    if problem_type == "single_label_classification" and len(labels) == 2:
        metrics = (*metrics, "f1")
    return Task(
        name="own",
        text_columns=tuple(text_columns),
        label_column=label_column,
        labels=tuple(labels),
        problem_type=problem_type,
        metrics=metrics,
        score=score,
        test_splits=(),
        hub_path=None,
        hub_revision=None,
    )


def own_headline(metrics: Collection[str]) -> str:
    """Return the headline metric of a model of the user's own files, given all its `metrics`.

    If no problem type has these metrics, return the first metric, or "" if there is none.
    """
    for names, score in _OWN_METRICS.values():
        if set(names) <= set(metrics):
            return score
    return next(iter(metrics), "")


# The balance of a user's classes is unknown. Accuracy would reward a model that always predicts the
# largest class; f1_macro weights classes equally. With many labels, few of which apply, f1_micro
# is steadier: rare labels make f1_macro jump. Lower is better for rmse, so it is never the score.
_OWN_METRICS: dict[ProblemType, tuple[tuple[str, ...], str]] = {
    "single_label_classification": (("accuracy", "f1_macro", "matthews_correlation"), "f1_macro"),
    "regression": (("pearson", "spearmanr", "rmse"), "spearmanr"),
    "multi_label_classification": (("f1_micro", "f1_macro", "accuracy"), "f1_micro"),
}
