"""Metrics of many bootstrap resamples at once, as functions of the weights of distinct rows.

A resample gives each distinct row a weight: its number of occurrences. A `Statistic` computes the
metric of all resamples with a few matrix products, instead of one call per resample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights of shape [resamples, distinct rows] -> metric values of shape [resamples]."""
Builder = Callable[[NDArray[Any], NDArray[Any]], Statistic]
"""(predictions, references) of distinct rows -> Statistic."""


class Counts(NamedTuple):
    """Counts of rows in each resample.

    Attributes:
        rows: All rows, shape [resamples].
        exact: Correct rows, shape [resamples].
        hits: Rows of a class that are predicted as this class, shape [resamples, classes].
        predicted: Rows predicted as a class, shape [resamples, classes].
        actual: Rows of a class, shape [resamples, classes].
        positive: Column of class 1; empty if class 1 does not occur.
        every_class: True to average also over classes that a resample lacks.
    """

    rows: Floats
    exact: Floats
    hits: Floats
    predicted: Floats
    actual: Floats
    positive: slice
    every_class: bool


def of_counts(value: Callable[[Counts], Floats]) -> Builder:
    """Build a `Metric.statistic` from a function of the resamples' class counts."""

    def build(predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        count = _counter(predictions, references)
        return lambda weights: value(count(weights))

    return build


def of_values(value: Callable[[Floats, Floats, Floats], Floats]) -> Builder:
    """Build a `Metric.statistic` from a function (weights, predictions, references) -> values."""

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


def f1_by_class(counts: Counts) -> Floats:
    return ratio(2 * counts.hits, counts.predicted + counts.actual)


def precision_by_class(counts: Counts) -> Floats:
    return ratio(counts.hits, counts.predicted)


def recall_by_class(counts: Counts) -> Floats:
    return ratio(counts.hits, counts.actual)


def of_second_class(value: Callable[[Counts], Floats]) -> Builder:
    return of_counts(lambda c: value(c)[:, c.positive].sum(axis=1))


def mean_over_classes(value: Callable[[Counts], Floats]) -> Builder:
    # As in scikit-learn: the classes that occur, but all labels of multi-label rows.
    def mean(counts: Counts) -> Floats:
        averaged = (counts.predicted + counts.actual > 0) | counts.every_class
        return np.asarray(value(counts).sum(axis=1) / averaged.sum(axis=1))

    return of_counts(mean)


def kappa(counts: Counts) -> Floats:
    by_chance = (counts.predicted * counts.actual).sum(axis=1)
    return ratio(counts.exact * counts.rows - by_chance, counts.rows**2 - by_chance)


def _label_columns(
    probabilities: NDArray[Any], references: NDArray[Any]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return score and truth of each decision, [rows, labels]; for two classes, only the second."""
    scores = probabilities.astype(np.float64)
    if references.ndim == 2:
        return scores, references > 0
    truth = references[:, None] == np.arange(scores.shape[1])
    return (scores[:, 1:], truth[:, 1:]) if scores.shape[1] == 2 else (scores, truth)


def by_rank(value: Callable[[Floats, Floats], Floats], empty: float) -> Builder:
    """Build a statistic of rankings: the mean over the labels that have positive and negative rows.

    `value` gets the total weights of positive and of negative rows at each distinct score, lowest
    score first. Both have the shape [resamples, scores]. `empty` is the result if no label has both
    kinds of rows.
    """

    def build(probabilities: NDArray[Any], references: NDArray[Any]) -> Statistic:
        labels = []
        for scores, truth in zip(
            *map(np.transpose, _label_columns(probabilities, references)), strict=True
        ):
            _, codes, sizes = np.unique(scores, return_inverse=True, return_counts=True)
            labels.append((np.argsort(codes, kind="stable"), np.cumsum(sizes) - sizes, truth))

        def statistic(weights: Floats) -> Floats:
            total, number = np.zeros(len(weights)), np.zeros(len(weights))
            for order, starts, truth in labels:
                positive, negative = (
                    np.add.reduceat((weights * rows)[:, order], starts, axis=1)
                    for rows in (truth, ~truth)
                )
                both = (positive.sum(axis=1) > 0) & (negative.sum(axis=1) > 0)
                total += np.where(both, value(positive, negative), 0.0)
                number += both
            return np.where(number > 0, total / np.maximum(number, 1), empty)

        return statistic

    return build


def roc_auc(positive: Floats, negative: Floats) -> Floats:
    """Area under the ROC curve as the Mann-Whitney statistic: a tie counts half."""
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return ratio((positive * below).sum(axis=1), pairs)


def average_precision(positive: Floats, negative: Floats) -> Floats:
    hits = np.cumsum(positive[:, ::-1], axis=1)
    precision = ratio(hits, np.cumsum((positive + negative)[:, ::-1], axis=1))
    return ratio((positive[:, ::-1] * precision).sum(axis=1), positive.sum(axis=1))


def log_loss(probabilities: NDArray[Any], references: NDArray[Any]) -> Statistic:
    scores, truth = _label_columns(probabilities, references)
    least = np.finfo(np.float32).eps
    one_hot = references.ndim == 1 and scores.shape[1] > 1
    of_truth = np.where(truth, scores, 1.0 if one_hot else 1 - scores)
    return _mean_of_rows(-np.log(np.maximum(of_truth, least)), references)


def brier_score(probabilities: NDArray[Any], references: NDArray[Any]) -> Statistic:
    scores, truth = _label_columns(probabilities, references)
    return _mean_of_rows((scores - truth) ** 2, references)


def _mean_of_rows(losses: Floats, references: NDArray[Any]) -> Statistic:
    """Average losses over rows, after a sum over a row's classes or a mean over its labels."""
    of_row = losses.mean(axis=1) if references.ndim == 2 else losses.sum(axis=1)
    return lambda weights: np.asarray(weights @ of_row / weights.sum(axis=1))


def matthews(counts: Counts) -> Floats:
    """Matthews correlation coefficient, for any number of classes (Gorodkin 2004)."""
    rows, predicted, actual = counts.rows, counts.predicted, counts.actual
    covariance = counts.exact * rows - (predicted * actual).sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (actual**2).sum(axis=1))
    return ratio(covariance, np.sqrt(spread))


def correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Compute Pearson's correlation in each resample; 0 where either side is constant.

    Args:
        weights: Weight of each distinct row, shape [resamples, rows].
        x: Values, shape [rows], or [resamples, rows] such as `ranks`.
        y: Values, of the same shape as `x`.

    Returns:
        Correlations, shape [resamples].
    """
    rows = weights.sum(axis=1, keepdims=True)
    dx, dy = (v - (weights * v).sum(axis=1, keepdims=True) / rows for v in (x, y))
    spread = np.ones(len(weights))  # the product of both variances
    for values, deviations in ((x, dx), (y, dy)):
        variance = (weights * deviations**2).sum(axis=1) / rows[:, 0]
        # Rounding can leave this much variance in a constant column.
        noise = (4 * np.spacing(np.abs(values).max())) ** 2
        spread *= np.where(variance > noise, variance, 0.0)
    return ratio((weights * dx * dy).sum(axis=1) / rows[:, 0], np.sqrt(spread))


def ranks(weights: Floats, values: Floats) -> Floats:
    """Rank each distinct row in each resample, [resamples, rows]; ties get their mean rank."""
    _, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    tied = np.add.reduceat(weights[:, np.argsort(codes)], starts, axis=1)
    shared: Floats = np.cumsum(tied, axis=1) - (tied - 1) / 2
    return shared[:, codes]


def ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def r2(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Compute 1 - squared error / variance in each resample; 0 where the reference is constant."""
    mean = (weights * y).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    variance = (weights * (y - mean) ** 2).sum(axis=1)
    noise = weights.sum(axis=1) * (4 * np.spacing(np.abs(y).max())) ** 2
    variance = np.where(variance > noise, variance, 0.0)
    return ratio(variance - weights @ (x - y) ** 2, variance)
