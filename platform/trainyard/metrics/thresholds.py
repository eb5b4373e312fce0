"""Decision thresholds of a multi-label model, fitted to maximize the F1 of each label.

A *cut* is a threshold as a logit. A label applies above its cut; a cut of 0 is a probability of
0.5.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError

THRESHOLDS_KEY = "label_thresholds"
"""Key of the thresholds in a model's config.json: {label: probability}."""
_LIMIT = math.log(999)
"""Maximum absolute value of a cut: thresholds lie between 0.001 and 0.999."""
_FOLDS = 5


def folds(rows: int, seed: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield masks (held, others) of random folds of the rows, both of shape [rows].

    There are five folds, or one per row for fewer than five rows. A single row is in both masks.
    """
    count = min(_FOLDS, rows)
    fold = np.random.default_rng(seed).permutation(rows) % count
    for number in range(count):
        held = fold == number
        yield held, ~held if count > 1 else held


def fit_cuts(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Find the cut that maximizes the F1 of each label on these rows, shape [labels].

    `logits` and `labels` (0 or 1) have the shape [rows, labels]. Candidate cuts lie midway between
    neighboring logits, or at 0 between logits of opposite sign. Among cuts of equal F1, the one
    nearest to 0 is chosen. A label without positive rows gets 0.
    """
    cuts = np.zeros(logits.shape[1])
    for label in np.flatnonzero((labels > 0).any(axis=0)):
        order = np.argsort(-logits[:, label], kind="stable")
        positive = labels[order, label] > 0
        # With a cut in gap n, the label applies to the n rows of highest logit.
        gaps = np.arange(len(order) + 1)
        f1 = 2 * np.append(0, positive.cumsum()) / (gaps + positive.sum())
        ordered = logits[order, label].astype(np.float64).clip(-_LIMIT, _LIMIT)
        upper, lower = np.append(_LIMIT, ordered), np.append(ordered, -_LIMIT)
        middle = np.where((lower <= 0) & (upper > 0), 0.0, (upper + lower) / 2)
        best = np.lexsort((np.abs(middle), -f1, lower == upper))[0]
        cuts[label] = middle[best]
    return cuts


def cross_fitted_cuts(
    logits: NDArray[Any], labels: NDArray[Any], *, seed: int
) -> NDArray[np.float64]:
    """Fit the cuts of each fold on the other folds; return the cuts of each row, [rows, labels].

    The cuts of a row were fitted without the row, so the fit does not inflate the score of its
    decisions. A single row is the exception: see `folds`.
    """
    cuts = np.zeros(logits.shape)
    for held, others in folds(len(logits), seed):
        cuts[held] = fit_cuts(logits[others], labels[others])
    return cuts


def stored_cuts(config: Any) -> NDArray[np.float64] | None:
    """Read the cuts from a model's config, in the order of its label ids, shape [labels].

    Returns None if the config stores no thresholds.

    Raises:
        UserError: The stored thresholds are not one number between 0 and 1 for each label.
    """
    found = getattr(config, THRESHOLDS_KEY, None)
    if found is None:
        return None
    names = [config.id2label[index] for index in sorted(config.id2label)]
    if (
        not isinstance(found, Mapping)
        or found.keys() != set(names)
        or not all(type(value) in (int, float) and 0 < value < 1 for value in found.values())
    ):
        raise UserError(
            f"{THRESHOLDS_KEY} in the model's config.json is {repr(found)[:60]}, expected a number "
            "between 0 and 1 for each label; correct it, or remove the key"
        )
    shares = np.array([found[name] for name in names], dtype=np.float64)
    return np.asarray(np.log(shares) - np.log1p(-shares))


def as_thresholds(cuts: NDArray[np.float64], names: tuple[str, ...]) -> dict[str, float]:
    """Convert cuts to probabilities by label, as stored under THRESHOLDS_KEY."""
    return dict(zip(names, (1 / (1 + np.exp(-cuts))).tolist(), strict=True))
