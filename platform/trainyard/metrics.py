"""Metrics as pure functions of numpy arrays, and as one offline `evaluate.Metric`.

A metric is one row of METRICS. Intervals, comparisons, sweeps and pages read all they need from it.
The names are those of the `glue` metric of `evaluate`. Values are always Python floats: numpy
scalars in a worker's report cannot be stored as JSON.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError

if TYPE_CHECKING:
    import evaluate

    from trainyard.tasks import ProblemType

Floats = NDArray[np.float64]
MetricFunction = Callable[[NDArray[Any], NDArray[Any]], float]
Input = Literal["labels", "values", "multi_label"]

Statistic = Callable[[Floats], Floats]
"""Weights of shape [resamples, distinct rows] -> metric values of shape [resamples]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One row of METRICS."""

    title: str
    """Name on pages."""
    function: MetricFunction
    """(predictions, references) -> value; raises UserError for no rows or unequal numbers."""
    inputs: tuple[Input, ...]
    """Accepted inputs: class indices or values of shape [rows], or 0/1 of [rows, labels]."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Least and greatest possible value; intervals are clipped to them."""
    higher_is_better: bool = True
    """False for an error."""
    counts_rows: bool = False
    """True for a share of correct rows: Wilson's interval and McNemar's test apply to it."""
    statistic: Callable[[NDArray[Any], NDArray[Any]], Statistic] | None = None
    """(predictions, references) of distinct rows -> Statistic, for the bootstrap interval.
    Default: call `function` on each resample, which is slower."""

    def weighted(self, predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        """Return the metric of distinct rows as a function of the rows' weights."""
        build = self.statistic or repeated(self.function)
        return build(predictions, references)


def repeated(function: MetricFunction) -> Callable[[NDArray[Any], NDArray[Any]], Statistic]:
    """Turn a metric function into a `Metric.statistic` that repeats each row by its weight."""

    def build(predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        return lambda weights: np.array(
            [
                function(
                    np.repeat(predictions, times, axis=0), np.repeat(references, times, axis=0)
                )
                for times in weights.astype(np.int64)
            ]
        )

    return build


def accuracy(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Share of correct rows; all labels of a multi-label row must be correct."""
    from sklearn.metrics import accuracy_score

    check_rows(predictions, references)
    return float(accuracy_score(references, predictions))


def f1(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 of class 1 against class 0; 0 where class 1 occurs on neither side."""
    return _f1(predictions, references, "binary")


def f1_macro(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Mean F1 over the classes that occur, or over all labels of multi-label rows."""
    return _f1(predictions, references, "macro")


def f1_micro(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 over all decisions together; equals accuracy for single-label rows."""
    return _f1(predictions, references, "micro")


def _f1(predictions: NDArray[Any], references: NDArray[Any], average: str) -> float:
    from sklearn.metrics import f1_score

    check_rows(predictions, references)
    if references.ndim == 2 and references.shape[1] == 1:
        # scikit-learn reads a one-column matrix as two classes and would average over both.
        average = "binary"
    return float(f1_score(references, predictions, average=average, zero_division=0.0))


def matthews_correlation(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Matthews correlation coefficient, for any number of classes (Gorodkin 2004)."""
    from sklearn.metrics import matthews_corrcoef

    check_rows(predictions, references)
    if is_constant(predictions) or is_constant(references):
        # 0/0. scikit-learn returns 0 too, but may warn.
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Pearson's linear correlation."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def spearmanr(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Spearman's rank correlation; ties share their mean rank."""
    from scipy.stats import spearmanr as rank_correlation

    return _correlation(rank_correlation, predictions, references)


def _correlation(
    function: Callable[..., Any], predictions: NDArray[Any], references: NDArray[Any]
) -> float:
    check_rows(predictions, references)
    if is_constant(predictions) or is_constant(references):
        # SciPy returns NaN, which no scheduler can compare. A constant prediction carries no
        # information, so it scores as no correlation.
        return 0.0
    # In float64: SciPy would compute in the float32 of the logits.
    return float(function(predictions.astype(np.float64), references.astype(np.float64)).statistic)


def rmse(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Root of the mean squared error, in the unit of the target."""
    from sklearn.metrics import root_mean_squared_error

    check_rows(predictions, references)
    return float(
        root_mean_squared_error(references.astype(np.float64), predictions.astype(np.float64))
    )


class Counts(NamedTuple):
    """Counts of each resample: shapes [resamples] and [resamples, classes]."""

    rows: Floats
    exact: Floats  # correct rows
    hits: Floats
    predicted: Floats
    actual: Floats
    positive: slice  # the column of class 1
    every_class: bool  # average also over classes that a resample lacks


def of_counts(
    value: Callable[[Counts], Floats],
) -> Callable[[NDArray[Any], NDArray[Any]], Statistic]:
    """Build a `Metric.statistic` from a function of the resamples' class counts."""

    def build(predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        count = _counter(predictions, references)
        return lambda weights: value(count(weights))

    return build


def of_values(
    value: Callable[[Floats, Floats, Floats], Floats],
) -> Callable[[NDArray[Any], NDArray[Any]], Statistic]:
    """Build a `Metric.statistic` from a function of (weights, predictions, references)."""

    def build(predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        x, y = predictions.astype(np.float64), references.astype(np.float64)
        return lambda weights: value(weights, x, y)

    return build


def _counter(predictions: NDArray[Any], references: NDArray[Any]) -> Callable[[Floats], Counts]:
    multi_label, positive = references.ndim == 2, slice(0)
    if not multi_label:
        classes = np.union1d(predictions, references)
        positive = slice(*np.searchsorted(classes, [1, 2]))
        predictions, references = (v[:, None] == classes for v in (predictions, references))
    exact = (predictions == references).all(axis=1).astype(np.float64)
    predicted, actual = predictions.astype(np.float64), references.astype(np.float64)
    hits = predicted * actual
    return lambda w: Counts(
        w.sum(axis=1), w @ exact, w @ hits, w @ predicted, w @ actual, positive, multi_label
    )


def _f1_weighted(counts: Counts) -> Floats:
    return _ratio(2 * counts.hits, counts.predicted + counts.actual)


def _f1_macro_weighted(counts: Counts) -> Floats:
    # As in scikit-learn: the classes that occur, but all labels of multi-label rows.
    averaged = (counts.predicted + counts.actual > 0) | counts.every_class
    return np.asarray(_f1_weighted(counts).sum(axis=1) / averaged.sum(axis=1))


def _matthews_weighted(counts: Counts) -> Floats:
    rows, predicted, actual = counts.rows, counts.predicted, counts.actual
    covariance = counts.exact * rows - (predicted * actual).sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (actual**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


def _correlation_weighted(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Compute Pearson's correlation in each resample; 0 where either side is constant."""
    rows = weights.sum(axis=1, keepdims=True)
    dx, dy = (v - (weights * v).sum(axis=1, keepdims=True) / rows for v in (x, y))
    spread = np.ones(len(weights))  # the product of both variances
    for values, deviations in ((x, dx), (y, dy)):
        variance = (weights * deviations**2).sum(axis=1) / rows[:, 0]
        # Rounding leaves about this much variance for a constant.
        noise = (4 * np.spacing(np.abs(values).max())) ** 2
        spread *= np.where(variance > noise, variance, 0.0)
    return _ratio((weights * dx * dy).sum(axis=1) / rows[:, 0], np.sqrt(spread))


def _ranks(weights: Floats, values: Floats) -> Floats:
    """Rank of each distinct row in each resample; ties share their mean rank."""
    _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    tied = np.add.reduceat(weights[:, np.argsort(codes)], starts, axis=1)
    shared: Floats = np.cumsum(tied, axis=1) - (tied - 1) / 2
    return shared[:, codes]


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Divide; 0/0 is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        title="accuracy",
        function=accuracy,
        inputs=("labels", "multi_label"),
        counts_rows=True,
        statistic=of_counts(lambda c: c.exact / c.rows),
    ),
    "f1": Metric(
        title="F1 of the second class",
        function=f1,
        inputs=("labels",),
        statistic=of_counts(lambda c: _f1_weighted(c)[:, c.positive].sum(axis=1)),
    ),
    "f1_macro": Metric(
        title="F1, mean over classes",
        function=f1_macro,
        inputs=("labels", "multi_label"),
        statistic=of_counts(_f1_macro_weighted),
    ),
    "f1_micro": Metric(
        title="F1 over all decisions",
        function=f1_micro,
        inputs=("labels", "multi_label"),
        statistic=of_counts(
            lambda c: _ratio(2 * c.hits.sum(axis=1), (c.predicted + c.actual).sum(axis=1))
        ),
    ),
    "matthews_correlation": Metric(
        title="Matthews correlation",
        function=matthews_correlation,
        inputs=("labels",),
        bounds=(-1.0, 1.0),
        statistic=of_counts(_matthews_weighted),
    ),
    "pearson": Metric(
        title="Pearson correlation",
        function=pearson,
        inputs=("values",),
        bounds=(-1.0, 1.0),
        statistic=of_values(_correlation_weighted),
    ),
    "spearmanr": Metric(
        title="Spearman rank correlation",
        function=spearmanr,
        inputs=("values",),
        bounds=(-1.0, 1.0),
        statistic=of_values(lambda w, x, y: _correlation_weighted(w, _ranks(w, x), _ranks(w, y))),
    ),
    "rmse": Metric(
        title="root mean squared error",
        function=rmse,
        inputs=("values",),
        bounds=(0.0, np.inf),
        higher_is_better=False,
        statistic=of_values(lambda w, x, y: np.sqrt(w @ (x - y) ** 2 / w.sum(axis=1))),
    ),
}


def get_metric(name: str) -> Metric:
    """Return the row of a metric.

    Raises:
        UserError: for an unknown name; lists them all.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'; known metrics: {', '.join(METRICS)}")
    return METRICS[name]


def build_metric(names: Sequence[str]) -> "evaluate.Metric":
    """Build one `evaluate.Metric` whose `compute` returns {name: float} for all of `names`.

    It uses neither network nor disk. It keeps its rows in memory, so use it on rank 0 only.

    Raises:
        UserError: for an unknown name or names without a common kind of input; `compute` raises it
            for no rows.
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
            f"no kind of prediction fits all requested metrics: {found or 'none'}; "
            "name metrics that share one"
        )

    class TrainyardMetric(evaluate.Metric):
        def _info(self) -> "evaluate.MetricInfo":
            return evaluate.MetricInfo(
                description="; ".join(f"{name}: {row.title}" for name, row in rows.items()),
                citation="",
                inputs_description="",
                features=features,
            )

        def _build_data_dir(self) -> str:
            # The base class creates a cache folder in the home folder even for in-memory metrics.
            return ""

        def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
            """Collect rows; for no rows at all the base class would raise an IndexError."""
            check_rows(np.asarray(predictions), np.asarray(references))
            super().add_batch(predictions=predictions, references=references)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            found = np.asarray(predictions), np.asarray(references)
            return {name: row.function(*found) for name, row in rows.items()}

    return TrainyardMetric(keep_in_memory=True)


def decode(problem_type: "ProblemType", logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits of shape [rows, labels] into predictions.

    Returns class indices [rows], values [rows] for regression, or 0/1 [rows, labels] for
    multi-label, where a logit above 0 is a probability above one half.
    """
    if problem_type == "regression":
        return np.squeeze(logits, axis=-1)
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(np.int64)
    classes: NDArray[np.int64] = logits.argmax(axis=-1)
    return classes


def check_rows(predictions: NDArray[Any], references: NDArray[Any]) -> None:
    """Check that a metric is defined.

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


def is_constant(values: NDArray[Any]) -> bool:
    """Return whether all rows are equal."""
    return bool((values == values[0]).all())
