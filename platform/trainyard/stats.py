"""Confidence intervals: bootstrap and Wilson over rows, Student's t over seeds.

Resampling n rows with replacement draws the count of each *distinct* row from a multinomial
distribution. A classifier has few distinct rows of prediction and label: the cells of its confusion
matrix. A thousand resamples are then one small array, and a metric is computed on all at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.metrics import Floats, MetricFunction, Statistic, check_rows, get_metric, repeated

Groups = NDArray[Any]
"""Group of each row, shape [rows]. Rows of a group are dependent, such as questions on one text."""

CELLS_AT_ONCE = 1 << 20
"""Maximum cells (resamples times distinct rows) of a temporary array: 8 MiB."""
_CELLS_IN_ALL = 20_000_000  # maximum cells of an interval: a few seconds
CONFIDENCE = 0.95
RESAMPLES = 1000
_FEWEST_RESAMPLES = 200
_MOST_RESAMPLES = 20_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired comparison of two models on the same rows."""

    difference: float
    """Metric of the first model minus the metric of the second."""
    low: float
    """Lower end of the difference's interval."""
    high: float
    """Upper end of the difference's interval."""
    verdict: Literal["better", "worse", "not distinguishable"]
    """Verdict on the first model: "better" or "worse" when the interval excludes 0."""


def bootstrap_interval(
    metric: str | MetricFunction,
    predictions: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval (low, high) of a metric over rows.

    The method is that of Efron and Tibshirani 1993, chapter 13. The same input and seed give the
    same interval. Above 20,000 distinct rows, fewer than 1000 resamples are drawn (at least 200) to
    bound the time. A `metric` function is called once per resample, and must not depend on the
    order of rows. With `groups`, whole groups are resampled, and the interval is expanded, since
    percentile intervals of few groups are too narrow (Hesterberg 2015).

    Predictions and references have the shapes that the metric takes, see `Metric.inputs`.

    Raises:
        UserError: The metric is unknown, there are no rows, shapes differ, or all rows are one
            group.
    """
    check_rows(predictions, references)
    first, draws = _distinct(groups, predictions, references)
    statistic = statistic_of(metric, predictions[first], references[first])
    return _interval(statistic, draws, seed, resamples, _tails())


def metric_interval(
    metric: str,
    predictions: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int = 0,
    groups: Groups | None = None,
) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a metric over rows.

    For a share of correct rows (`Metric.counts_rows`) without `groups`, it is Wilson's: the
    bootstrap interval of a share of few rows is too narrow. Otherwise it is the bootstrap interval.

    Raises:
        UserError: A condition of `bootstrap_interval` applies.
    """
    if groups is not None or not get_metric(metric).counts_rows:
        return bootstrap_interval(metric, predictions, references, seed=seed, groups=groups)
    check_rows(predictions, references)
    correct = (predictions == references).reshape(len(references), -1).all(axis=1)
    return proportion_interval(int(correct.sum()), len(correct))


def paired_bootstrap(
    metric: str | MetricFunction,
    predictions: NDArray[Any],
    baseline: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int = 0,
    groups: Groups | None = None,
    candidates: tuple[int, int] = (1, 1),
) -> Comparison:
    """Compare `predictions` with a `baseline`, both evaluated on the same resampled rows.

    The arrays have the shapes of `bootstrap_interval`. A `metric` function must return higher values
    for better models. If these rows also selected a model, `candidates` holds the number of models
    that it was selected from, for each side. Selection biases one end of the interval; a Bonferroni
    correction widens that end.

    Raises:
        UserError: A condition of `bootstrap_interval` applies.
    """
    check_rows(predictions, references)
    check_rows(baseline, references)
    first, draws = _distinct(groups, predictions, baseline, references)
    ours = statistic_of(metric, predictions[first], references[first])
    theirs = statistic_of(metric, baseline[first], references[first])

    def difference(weights: Floats) -> Floats:
        return ours(weights) - theirs(weights)

    higher_is_better = callable(metric) or get_metric(metric).higher_is_better
    corrections = candidates if higher_is_better else candidates[::-1]
    resamples = min(RESAMPLES * max(candidates), _MOST_RESAMPLES)
    low, high = _interval(difference, draws, seed, resamples, _tails(corrections))
    observed = float(difference(draws.counts[None].astype(np.float64))[0])
    if low <= 0 <= high:
        return Comparison(observed, low, high, "not distinguishable")
    return Comparison(observed, low, high, "better" if (low > 0) == higher_is_better else "worse")


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of `values` and its 95 % interval by Student's t, as (mean, low, high).

    For a single value, all three are equal.

    Raises:
        UserError: `values` is empty.
    """
    from scipy.special import stdtrit

    if len(values) == 0:
        raise UserError("there are no values to average; give at least one")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, mean, mean
    t = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    half = float(t * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def proportion_interval(hits: int, rows: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval (low, high) of the share `hits` / `rows`.

    Unlike the bootstrap interval, it does not collapse at shares of 0 and 1. Without rows it is
    (0, 1).
    """
    from scipy.stats import binomtest

    if rows == 0:
        return 0.0, 1.0
    interval = binomtest(hits, rows).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def distinct_rows(*columns: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the first index and the count of each distinct row, both of shape [distinct rows].

    A row holds the values of all `columns` at one index.
    """
    rows = np.column_stack(columns)
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return first, counts


class _Draws(NamedTuple):
    """Units that a bootstrap draws: distinct rows, or whole groups of rows."""

    counts: NDArray[np.int64]
    """Occurrences of each distinct row; equal rows of different groups are distinct."""
    group: NDArray[np.int64] | None
    """Group number of each distinct row, counted from 0; None to draw single rows."""


def _distinct(groups: Groups | None, *columns: NDArray[Any]) -> tuple[NDArray[np.intp], _Draws]:
    if groups is None:
        first, counts = distinct_rows(*columns)
        return first, _Draws(counts, None)
    group = group_numbers(groups)
    first, counts = distinct_rows(*columns, group)
    return first, _Draws(counts, group[first])


def group_numbers(groups: Groups) -> NDArray[np.int64]:
    """Return the group of each row as a number counted from 0; shape [rows].

    Raises:
        UserError: All rows belong to one group.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            "all rows are of one group, so nothing can be said of others; drop the groups"
        )
    return numbers.ravel().astype(np.int64)


def _tails(candidates: tuple[int, int] = (1, 1)) -> tuple[float, float]:
    """Return the probabilities below and above a 95 % interval, each divided by `candidates`."""
    half = (1 - CONFIDENCE) / 2
    return half / candidates[0], half / candidates[1]


def _interval(
    statistic: Statistic, draws: _Draws, seed: int, resamples: int, tails: tuple[float, float]
) -> tuple[float, float]:
    from scipy.special import ndtr, stdtrit

    values = np.concatenate([statistic(w) for w in _resamples(draws, seed, resamples)])
    if draws.group is not None:
        # The percentile interval of few groups is too narrow: expand it as Hesterberg (2015) does.
        groups = int(draws.group.max()) + 1
        wider = np.sqrt(groups / (groups - 1))
        tails = tuple(float(ndtr(wider * stdtrit(groups - 1, tail))) for tail in tails)  # type: ignore[assignment]
    low, high = np.quantile(values, [tails[0], 1 - tails[1]])
    return float(low), float(high)


def _resamples(draws: _Draws, seed: int, resamples: int) -> Iterator[Floats]:
    rng, counts = np.random.default_rng(seed), draws.counts
    total, distinct = int(counts.sum()), len(counts)
    resamples = min(resamples, max(_CELLS_IN_ALL // distinct, _FEWEST_RESAMPLES))
    at_once = max(1, CELLS_AT_ONCE // distinct)
    row_of_draw = np.repeat(np.arange(distinct), counts)
    groups = 0 if draws.group is None else int(draws.group.max()) + 1
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        if draws.group is not None:
            drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=size)
            weights = drawn[:, draws.group] * counts
        elif total > 3 * distinct:
            weights = rng.multinomial(total, counts / total, size=size)
        else:  # Same distribution; faster when few rows repeat.
            drawn = row_of_draw[rng.integers(total, size=(size, total))]
            drawn += distinct * np.arange(size)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=size * distinct).reshape(size, distinct)
        yield weights.astype(np.float64)


def statistic_of(
    metric: str | MetricFunction, predictions: NDArray[Any], references: NDArray[Any]
) -> Statistic:
    """Build the `Statistic` of a metric: a function from weights of these rows to metric values.

    Raises:
        UserError: The name of the metric is unknown.
    """
    if callable(metric):
        return repeated(metric)(predictions, references)
    return get_metric(metric).weighted(predictions, references)
