"""Metrics as pure functions of numpy arrays, and as one offline `evaluate.Metric`.

The names are those of the `glue` metric of `evaluate`. Values are Python floats always: a numpy
scalar in what a worker reports cannot be stored as JSON.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError

if TYPE_CHECKING:
    import evaluate

    from trainyard.tasks import ProblemType

MetricFunction = Callable[[NDArray[Any], NDArray[Any]], float]
Input = Literal["labels", "values", "multi_label"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One row of METRICS."""

    description: str
    """What it measures, for a model card."""
    function: MetricFunction
    """(predictions, references) -> value; raises UserError for no rows or unequal numbers."""
    inputs: tuple[Input, ...]
    """What it works from: class indices or values of shape [rows], or 0/1 of [rows, labels]."""
    higher_is_better: bool = True
    """False for an error."""
    counts_rows: bool = False
    """Whether it is the share of rows that are right, each by itself: a proportion, with its tests."""


def accuracy(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Share of rows that are right; of a multi-label row, all labels must be."""
    from sklearn.metrics import accuracy_score

    check_rows(predictions, references)
    return float(accuracy_score(references, predictions))


def f1(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 of class 1 against class 0; 0 where that class is neither predicted nor right."""
    return _f1(predictions, references, "binary")


def f1_macro(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Mean over classes of their F1: over those that occur, or over all of a multi-label row."""
    return _f1(predictions, references, "macro")


def f1_micro(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 of all decisions counted together; of single labels, this is the accuracy."""
    return _f1(predictions, references, "micro")


def _f1(predictions: NDArray[Any], references: NDArray[Any], average: str) -> float:
    from sklearn.metrics import f1_score

    check_rows(predictions, references)
    if references.ndim == 2 and references.shape[1] == 1:
        # scikit-learn takes a matrix of one column for two classes and would average over both.
        average = "binary"
    return float(f1_score(references, predictions, average=average, zero_division=0.0))


def matthews_correlation(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Matthews' correlation, for any number of classes by Gorodkin (2004); between -1 and 1."""
    from sklearn.metrics import matthews_corrcoef

    check_rows(predictions, references)
    if _constant(predictions) or _constant(references):
        # 0/0: a constant tells nothing. scikit-learn says 0 too, but may warn on the way.
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Pearson's linear correlation; between -1 and 1."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def spearmanr(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; between -1 and 1."""
    from scipy.stats import spearmanr as rank_correlation

    return _correlation(rank_correlation, predictions, references)


def _correlation(
    function: Callable[..., Any], predictions: NDArray[Any], references: NDArray[Any]
) -> float:
    check_rows(predictions, references)
    if _constant(predictions) or _constant(references):
        # SciPy gives NaN, which no scheduler can compare. A model that answers one value for
        # every row has learnt nothing, so its score is that of no correlation.
        return 0.0
    # In float64: SciPy would stay in the float32 of a model's logits.
    return float(function(predictions.astype(np.float64), references.astype(np.float64)).statistic)


def rmse(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Root of the mean squared error, in the unit of the target."""
    from sklearn.metrics import root_mean_squared_error

    check_rows(predictions, references)
    return float(
        root_mean_squared_error(references.astype(np.float64), predictions.astype(np.float64))
    )


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        description="share of rows predicted right",
        function=accuracy,
        inputs=("labels", "multi_label"),
        counts_rows=True,
    ),
    "f1": Metric(description="F1 of the second class", function=f1, inputs=("labels",)),
    "f1_macro": Metric(
        description="mean F1 over classes", function=f1_macro, inputs=("labels", "multi_label")
    ),
    "f1_micro": Metric(
        description="F1 over all decisions", function=f1_micro, inputs=("labels", "multi_label")
    ),
    "matthews_correlation": Metric(
        description="Matthews' correlation", function=matthews_correlation, inputs=("labels",)
    ),
    "pearson": Metric(description="Pearson's correlation", function=pearson, inputs=("values",)),
    "spearmanr": Metric(
        description="Spearman's rank correlation", function=spearmanr, inputs=("values",)
    ),
    "rmse": Metric(
        description="root mean squared error",
        function=rmse,
        inputs=("values",),
        higher_is_better=False,
    ),
}


def get_metric(name: str) -> Metric:
    """The row of a known metric.

    Raises:
        UserError: for an unknown name; lists them all.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'; known metrics: {', '.join(METRICS)}")
    return METRICS[name]


def build_metric(names: Sequence[str]) -> "evaluate.Metric":
    """One `evaluate.Metric` whose `compute` returns {name: float} for all of `names`.

    It touches neither network nor disk, so it works offline and on a read-only home folder. It
    keeps its rows in memory and belongs in one process: that of rank 0.

    Raises:
        UserError: for an unknown name, for names that no one kind of prediction fits, and from
            `compute` for no rows.
    """
    import datasets
    import evaluate

    rows = {name: get_metric(name) for name in names}
    label, value = datasets.Value("int64"), datasets.Value("float64")
    types = {"labels": label, "values": value, "multi_label": datasets.List(label)}
    features = [
        datasets.Features(predictions=type_, references=type_)
        for kind, type_ in types.items()
        if all(kind in row.inputs for row in rows.values())
    ]
    if not rows or not features:
        found = ", ".join(f"{name} ({' or '.join(row.inputs)})" for name, row in rows.items())
        raise UserError(
            f"no kind of prediction fits all the metrics asked for: {found or 'none'}; "
            "name metrics that share one"
        )

    class TrainyardMetric(evaluate.Metric):
        def _info(self) -> "evaluate.MetricInfo":
            return evaluate.MetricInfo(
                description="; ".join(f"{name}: {row.description}" for name, row in rows.items()),
                citation="",
                inputs_description="",
                features=features,
            )

        def _build_data_dir(self) -> str:
            # The base class makes a cache folder in the home folder, even to stay in memory.
            return ""

        def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
            """Collect rows, refusing none at all: the base class would say "IndexError"."""
            check_rows(np.asarray(predictions), np.asarray(references))
            super().add_batch(predictions=predictions, references=references)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            predicted, right = np.asarray(predictions), np.asarray(references)
            return {name: row.function(predicted, right) for name, row in rows.items()}

    return TrainyardMetric(keep_in_memory=True)


def decode(problem_type: "ProblemType", logits: NDArray[Any]) -> NDArray[Any]:
    """Predictions from a model's outputs of shape [rows, labels].

    Class indices [rows], values [rows] for regression, or 0/1 [rows, labels] for multi-label,
    where a logit above 0 is a probability above one half.
    """
    if problem_type == "regression":
        return np.squeeze(logits, axis=-1)
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(np.int64)
    classes: NDArray[np.int64] = logits.argmax(axis=-1)
    return classes


def check_rows(predictions: NDArray[Any], references: NDArray[Any]) -> None:
    """Refuse what has no metric.

    Raises:
        UserError: for no rows, or for predictions and references of different shapes.
    """
    if predictions.shape != references.shape:
        raise UserError(
            f"predictions have shape {list(predictions.shape)} but references "
            f"{list(references.shape)}; give one prediction for each reference"
        )
    if len(references) == 0:
        raise UserError("there are no rows to score; a metric needs at least one")


def _constant(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())
