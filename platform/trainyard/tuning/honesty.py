"""What a sweep may claim: the winner's score, corrected for having been picked, and a verdict.

The best configurations are run again with fresh seeds, and so is the default recipe. What is left
of luck is which rows happen to be in the validation set, which seeds were drawn, and that the winner
is the best of several. Rows and seeds are resampled as follows.

The winner's score is corrected as by Tsamardinos, Greasidou and Borboudakis (2018, BBC): in each of
many bootstrap samples of rows, the winner is picked on the rows that were drawn and scored on those
that were not. Seeds are treated likewise: it is picked by all but one and scored on the one left
out. A score that was not looked at for picking is not inflated by it.

The interval takes its width from both sources of noise: over rows, the paired bootstrap; over
seeds, whose handful is too few to resample, the variance of their mean. The two are added and
Student's t is taken at Satterthwaite's (1946) degrees of freedom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainyard.stats import distinct_rows, statistic_of

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "not distinguishable"]

RESAMPLES = 1000
BOUNDS = {
    "matthews_correlation": (-1.0, 1.0), "pearson": (-1.0, 1.0), "spearmanr": (-1.0, 1.0),
    "rmse": (-np.inf, np.inf),
}  # fmt: skip
"""What a score can be at all; 0 to 1 for all other metrics."""
_CELLS_AT_ONCE = 1 << 22
"""Rows times resamples in one temporary array."""
_FEW_CELLS = 64
"""Distinct rows (of a confusion matrix) up to which it pays to count them instead of rows."""


@dataclass(frozen=True)
class Judged:
    """Predictions of some configurations, each by several seeds, on one split.

    `predictions` holds, for each configuration and seed, what was predicted for the split's rows;
    the first configuration is the default recipe.
    """

    metric: str
    predictions: Sequence[Sequence[NDArray[Any]]]
    references: NDArray[Any]


@dataclass(frozen=True)
class Confirmation:
    """What the confirming runs say."""

    winner: int
    """Which candidate, from 0, has the best mean score."""
    corrected: float
    """Its score, corrected for having been picked."""
    interval: tuple[float, float]
    """Of that score."""
    default_interval: tuple[float, float]
    """Of the default recipe's mean score."""
    difference: float
    """Corrected winner minus default."""
    difference_interval: tuple[float, float]
    verdict: Verdict
    """Of the winner: whether the interval of the difference leaves out 0."""


def confirm(
    scores: Floats, splits: Sequence[Judged], *, seed: int = 0, confidence: float = 0.95
) -> Confirmation:
    """Judge the winner among candidates against the default recipe.

    Args:
        scores: Scores of the runs, of shape [1 + candidates, seeds]; row 0 is the default recipe.
        splits: Their predictions; a score is the mean over splits of the metric.
        seed: Of the bootstrap; the same input and seed give the same answer.
        confidence: Of the intervals.
    """
    drawn, left_out = _resampled(splits, seed)
    winner = int(np.argmax(scores[1:].mean(axis=1)))
    default, best = drawn[0].mean(axis=0), drawn[1 + winner].mean(axis=0)
    picked, baseline = _out_of_bag(drawn, left_out)
    spread = scores.var(axis=1, ddof=1)
    # A few seeds can agree by luck: none is taken as steadier than the average recipe.
    noise = np.maximum(spread, spread.mean()) / scores.shape[1]
    seeds = scores.shape[1] - 1

    def interval(center: float, rows: Floats, *seed_noise: float) -> tuple[float, float]:
        half = _half_width(float(rows.var()), seed_noise, seeds, confidence)
        return center - half, center + half

    def within(ends: tuple[float, float]) -> tuple[float, float]:
        least, most = BOUNDS.get(splits[0].metric, (0.0, 1.0))
        return float(np.clip(ends[0], least, most)), float(np.clip(ends[1], least, most))

    difference = float((picked - baseline).mean())
    low, high = interval(difference, best - default, noise[1 + winner], noise[0])
    verdict: Verdict = "not distinguishable"
    if low > 0 or high < 0:
        verdict = "better" if low > 0 else "worse"
    corrected = float(picked.mean())
    return Confirmation(
        winner=winner,
        corrected=corrected,
        interval=within(interval(corrected, best, noise[1 + winner])),
        default_interval=within(interval(float(scores[0].mean()), default, noise[0])),
        difference=difference,
        difference_interval=(low, high),
        verdict=verdict,
    )


def _resampled(splits: Sequence[Judged], seed: int) -> tuple[Floats, Floats]:
    """Scores on the rows that each bootstrap sample drew, and on those that it left out.

    Both of shape [configurations, seeds, RESAMPLES].
    """
    rng = np.random.default_rng(seed)
    totals = [_resample_split(split, rng) for split in splits]
    drawn = np.mean([each[0] for each in totals], axis=0)
    left_out = np.mean([each[1] for each in totals], axis=0)
    return drawn, left_out


def _resample_split(split: Judged, rng: np.random.Generator) -> tuple[Floats, Floats]:
    rows = len(split.references)
    statistics, members = [], []
    for predictions in (p for configuration in split.predictions for p in configuration):
        first, _ = distinct_rows(predictions, split.references)
        few = len(first) <= _FEW_CELLS
        kept = first if few else slice(None)
        statistics.append(statistic_of(split.metric, predictions[kept], split.references[kept]))
        members.append(_cell_of_row(predictions, split.references) if few else None)
    found: list[Floats] = []
    at_once = max(1, _CELLS_AT_ONCE // rows)
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        weights = np.concatenate([counts, counts == 0]).astype(np.float64)
        values = [
            statistic(weights if member is None else weights @ member)
            for statistic, member in zip(statistics, members, strict=True)
        ]
        found.append(np.array(values).reshape(len(values), 2, size))
    shape = (len(split.predictions), -1, RESAMPLES)
    values_of = np.concatenate(found, axis=2)
    return values_of[:, 0].reshape(shape), values_of[:, 1].reshape(shape)


def _cell_of_row(predictions: NDArray[Any], references: NDArray[Any]) -> Floats:
    """[rows, cells]: 1 where a row is of a cell, as numbered by `distinct_rows`."""
    _, codes = np.unique(np.column_stack((predictions, references)), axis=0, return_inverse=True)
    member = np.zeros((len(references), int(codes.max()) + 1))
    member[np.arange(len(references)), codes.ravel()] = 1
    return member


def _out_of_bag(drawn: Floats, left_out: Floats) -> tuple[Floats, Floats]:
    """Scores of the picked candidate and of the default recipe, on rows and a seed not picked by.

    Both of shape [seeds, RESAMPLES].
    """
    seeds = drawn.shape[1]
    candidates, unseen = drawn[1:], left_out[1:]
    picked = np.empty(drawn.shape[1:])
    for held_out in range(seeds):
        others = np.delete(candidates, held_out, axis=1).mean(axis=1)
        choice = others.argmax(axis=0)
        picked[held_out] = np.take_along_axis(unseen[:, held_out], choice[None], axis=0)[0]
    return picked, left_out[0]


def _half_width(rows: float, seed_noise: Sequence[float], seeds: int, confidence: float) -> float:
    """Student's t times the standard error, at Satterthwaite's degrees of freedom."""
    from scipy.special import stdtrit

    total = rows + sum(seed_noise)
    if total == 0:
        return 0.0
    # The bootstrap's share is as good as known: it has as many degrees of freedom as rows.
    freedom = total**2 / max(sum(v**2 for v in seed_noise) / seeds, total**2 * 1e-6)
    return float(stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(total))
