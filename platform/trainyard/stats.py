"""How sure a number is: bootstrap and Wilson intervals over rows, Student-t intervals over seeds.

Resampling n rows with replacement is drawing how often each *distinct* row occurs, from a
multinomial distribution. A classifier has few distinct rows (the cells of its confusion matrix), so
a thousand resamples are one small array, and every metric is computed for all of them at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.metrics import MetricFunction, check_rows, get_metric

Floats = NDArray[np.float64]

# [resamples, distinct rows]: how often each was drawn -> [resamples]: the metric's values.
Statistic = Callable[[Floats], Floats]

_CELLS_AT_ONCE = 1 << 20  # 8 MiB in each temporary array
_CELLS_IN_ALL = 20_000_000  # a few seconds
_FEWEST_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two models judged on the same rows: is the first better than the second?"""

    difference: float
    """The metric of the first minus that of the second."""
    low: float
    """Lower end of the difference's interval."""
    high: float
    """Upper end of the difference's interval."""
    verdict: Literal["better", "worse", "not distinguishable"]
    """Of the first: whether the interval leaves out 0, and on the metric's good side."""


def bootstrap_interval(
    metric: str | MetricFunction,
    predictions: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric over rows (Efron and Tibshirani 1993, chapter 13).

    The same input and seed give the same interval. With more than 20,000 distinct rows fewer
    resamples are drawn, never under 200, to bound the time. A function in place of a name is called
    once for each resample, and must not depend on the order of rows.

    Raises:
        UserError: for an unknown metric, no rows, or unequal numbers of them.
    """
    check_rows(predictions, references)
    first, counts = distinct_rows(predictions, references)
    statistic = statistic_of(metric, predictions[first], references[first])
    return _interval(statistic, counts, seed, resamples, confidence)


def metric_interval(
    metric: str, predictions: NDArray[Any], references: NDArray[Any], *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a metric over rows: Wilson's of a share of rows, else the bootstrap's.

    Of few rows, the bootstrap's interval of a share is too narrow.

    Raises:
        UserError: as `bootstrap_interval`.
    """
    if not get_metric(metric).counts_rows:
        return bootstrap_interval(metric, predictions, references, seed=seed)
    check_rows(predictions, references)
    right = (predictions == references).reshape(len(references), -1).all(axis=1)
    return proportion_interval(int(right.sum()), len(right))


def paired_bootstrap(
    metric: str | MetricFunction,
    predictions: NDArray[Any],
    baseline: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Comparison:
    """Compare `predictions` with those of a `baseline`, both judged on the same resampled rows.

    A function in place of a metric's name is taken as higher is better.

    Raises:
        UserError: as `bootstrap_interval`.
    """
    check_rows(predictions, references)
    check_rows(baseline, references)
    first, counts = distinct_rows(predictions, baseline, references)
    ours = statistic_of(metric, predictions[first], references[first])
    theirs = statistic_of(metric, baseline[first], references[first])

    def difference(weights: Floats) -> Floats:
        return ours(weights) - theirs(weights)

    low, high = _interval(difference, counts, seed, resamples, confidence)
    observed = float(difference(counts[None].astype(np.float64))[0])
    if low <= 0 <= high:
        return Comparison(observed, low, high, "not distinguishable")
    higher_is_better = callable(metric) or get_metric(metric).higher_is_better
    return Comparison(observed, low, high, "better" if (low > 0) == higher_is_better else "worse")


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) over seeds, by Student's t; one value alone has an interval of no width.

    Raises:
        UserError: for no values.
    """
    from scipy.special import stdtrit

    if len(values) == 0:
        raise UserError("there are no values to average; give at least one")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, mean, mean
    t = stdtrit(len(values) - 1, (1 + confidence) / 2)
    half = float(t * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def proportion_interval(hits: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share of rows, by Wilson's score: also right of few rows, of none and of all.

    (There the bootstrap says that it is sure.) Of no rows at all, anything between 0 and 1.
    """
    from scipy.stats import binomtest

    if rows == 0:
        return 0.0, 1.0
    found = binomtest(hits, rows).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def distinct_rows(*columns: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Where each distinct row occurs first, and how often it occurs."""
    rows = np.column_stack(columns)
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return first, counts


def _interval(
    statistic: Statistic, counts: NDArray[np.int64], seed: int, resamples: int, confidence: float
) -> tuple[float, float]:
    values = np.concatenate([statistic(w) for w in _resamples(counts, seed, resamples)])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resamples(counts: NDArray[np.int64], seed: int, resamples: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    total, distinct = int(counts.sum()), len(counts)
    resamples = min(resamples, max(_CELLS_IN_ALL // distinct, _FEWEST_RESAMPLES))
    at_once = max(1, _CELLS_AT_ONCE // distinct)
    row_of_draw = np.repeat(np.arange(distinct), counts)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        if total > 3 * distinct:
            weights = rng.multinomial(total, counts / total, size=size)
        else:  # The same distribution; where few rows repeat, counting single draws is faster.
            drawn = row_of_draw[rng.integers(total, size=(size, total))]
            drawn += distinct * np.arange(size)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=size * distinct).reshape(size, distinct)
        yield weights.astype(np.float64)


def statistic_of(
    metric: str | MetricFunction, predictions: NDArray[Any], references: NDArray[Any]
) -> Statistic:
    """The metric of distinct rows as a function of how often each of them counts."""
    if callable(metric):
        return lambda weights: np.array(
            [
                metric(np.repeat(predictions, times, axis=0), np.repeat(references, times, axis=0))
                for times in weights.astype(np.int64)
            ]
        )
    if get_metric(metric).inputs == ("values",):
        of_values = _VALUE_STATISTICS[metric]
        x, y = predictions.astype(np.float64), references.astype(np.float64)
        return lambda weights: of_values(weights, x, y)
    of_counts, count = _COUNT_STATISTICS[metric], _counter(predictions, references)
    return lambda weights: of_counts(count(weights))


class _Counts(NamedTuple):
    """What each resample holds: shapes [resamples] and [resamples, classes]."""

    rows: Floats
    exact: Floats  # rows predicted right
    hits: Floats
    predicted: Floats
    right: Floats
    positive: slice  # the column of class 1
    every_class: bool  # whether a class that a resample lacks is averaged over


def _counter(predictions: NDArray[Any], references: NDArray[Any]) -> Callable[[Floats], _Counts]:
    multi_label, positive = references.ndim == 2, slice(0)
    if not multi_label:
        classes = np.union1d(predictions, references)
        positive = slice(*np.searchsorted(classes, [1, 2]))
        predictions, references = (v[:, None] == classes for v in (predictions, references))
    exact = (predictions == references).all(axis=1).astype(np.float64)
    predicted, right = predictions.astype(np.float64), references.astype(np.float64)
    hits = predicted * right
    return lambda w: _Counts(
        w.sum(axis=1), w @ exact, w @ hits, w @ predicted, w @ right, positive, multi_label
    )


def _f1(counts: _Counts) -> Floats:
    return _ratio(2 * counts.hits, counts.predicted + counts.right)


def _f1_macro(counts: _Counts) -> Floats:
    # As in scikit-learn, classes are those that occur, but labels of a multi-label row are fixed.
    averaged = (counts.predicted + counts.right > 0) | counts.every_class
    return np.asarray(_f1(counts).sum(axis=1) / averaged.sum(axis=1))


def _matthews_correlation(counts: _Counts) -> Floats:
    rows, predicted, right = counts.rows, counts.predicted, counts.right
    covariance = counts.exact * rows - (predicted * right).sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (right**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Pearson's correlation in each resample; 0 where either side is constant."""
    rows = weights.sum(axis=1, keepdims=True)
    dx, dy = (v - (weights * v).sum(axis=1, keepdims=True) / rows for v in (x, y))
    spread = np.ones(len(weights))  # the product of both variances
    for values, deviations in ((x, dx), (y, dy)):
        variance = (weights * deviations**2).sum(axis=1) / rows[:, 0]
        # Of one value repeated, rounding leaves about this much instead of 0.
        noise = (4 * np.spacing(np.abs(values).max())) ** 2
        spread *= np.where(variance > noise, variance, 0.0)
    return _ratio((weights * dx * dy).sum(axis=1) / rows[:, 0], np.sqrt(spread))


def _ranks(weights: Floats, values: Floats) -> Floats:
    """Rank of each distinct row in each resample, ties sharing their mean: a sum of weights."""
    _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    tied = np.add.reduceat(weights[:, np.argsort(codes)], starts, axis=1)
    shared: Floats = np.cumsum(tied, axis=1) - (tied - 1) / 2
    return shared[:, codes]


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """The quotient, and 0 for 0/0, as in `trainyard.metrics`."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


_COUNT_STATISTICS: dict[str, Callable[[_Counts], Floats]] = {
    "accuracy": lambda c: c.exact / c.rows,
    "f1": lambda c: _f1(c)[:, c.positive].sum(axis=1),
    "f1_macro": _f1_macro,
    "f1_micro": lambda c: _ratio(2 * c.hits.sum(axis=1), (c.predicted + c.right).sum(axis=1)),
    "matthews_correlation": _matthews_correlation,
}
_VALUE_STATISTICS: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "pearson": _correlation,
    "spearmanr": lambda w, x, y: _correlation(w, _ranks(w, x), _ranks(w, y)),
    "rmse": lambda w, x, y: np.sqrt(w @ (x - y) ** 2 / w.sum(axis=1)),
}
