"""Calibration of a model's probabilities, and the temperature that corrects them.

Expected calibration error and temperature scaling as in Guo et al., On Calibration of Modern Neural
Networks (ICML 2017). The error is never 0 on a finite sample. `expected_if_calibrated` is the error of
a perfectly calibrated model on the same number of rows (consistency resampling, Bröcker and Smith 2007).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.evaluation.selection import Selection
from trainyard.inference import COLDEST, HOTTEST
from trainyard.stats import proportion_interval

BINS = 15
FOLDS = 5
SIMULATIONS = 200

Floats = NDArray[np.float64]


def decisions(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> tuple[Any, Any]:
    """Return (logits [decisions, classes], classes); each label of a multi-label row is a decision."""
    if problem_type == "multi_label_classification":
        flat = logits.astype(np.float64).reshape(-1, 1)
        return np.hstack([np.zeros_like(flat), flat]), labels.astype(np.int64).ravel()
    return logits.astype(np.float64), labels.astype(np.int64)


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Softmax of logits / temperature; shape [rows, classes]."""
    from scipy.special import softmax

    return np.asarray(softmax(logits / temperature, axis=1))


def log_loss(logits: Floats, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Find the temperature of least log loss from COLDEST to HOTTEST (bounded Brent search).

    It is a bound if none between the bounds is better; COLDEST if all rows are right.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(logits, labels, float(np.exp(log_t))),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
    )
    inside = float(np.exp(found.x))
    return min((COLDEST, HOTTEST, inside), key=lambda t: log_loss(logits, labels, t))


def calibration_error(confidence: Floats, right: NDArray[Any]) -> float:
    """Mean over rows of |accuracy - confidence| of the row's bin, with 15 bins of equal width."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, right - confidence, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def calibration(
    problem_type: str,
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    seed: int,
    selection: Selection | None = None,
) -> dict[str, Any]:
    """Calibration of a split: error and reliability diagram, before and after temperature scaling.

    The figures after scaling are cross-fitted: each fold is scored with a temperature fitted on the
    others. `temperature` itself is fitted on all rows.

    Accuracy is too high on rows that chose the model. So "overconfident" needs no correction.
    "underconfident" is corrected for a choice among a run's evaluations (Bonferroni); when no
    correction is possible, the verdict is withheld (None).
    """
    scores, classes = decisions(problem_type, logits, labels)
    raw = probabilities(scores)
    scaled, folds = np.empty_like(raw), min(FOLDS, len(classes))
    fold = np.random.default_rng(seed).permutation(len(classes)) % folds
    for k in range(folds):
        held = fold == k
        others = ~held if folds > 1 else held
        scaled[held] = probabilities(scores[held], fit_temperature(scores[others], classes[others]))
    before = _figures(raw, classes)
    candidates = selection.candidates if selection else 1
    limits = _expected_if_calibrated(raw.max(axis=1), seed, candidates or 1)
    verdict: str | None = "not distinguishable from calibrated"
    if before["mean_confidence"] > before["accuracy"]:
        if before["ece"] > limits[0]:
            verdict = "overconfident"
    elif before["ece"] > limits[1]:
        verdict = "underconfident"
    if candidates is None and verdict != "overconfident":
        verdict = None
    return {
        "rows": len(labels),
        "temperature": fit_temperature(scores, classes),
        "before": before,
        "after": _figures(scaled, classes),
        "expected_if_calibrated": limits[0],
        "verdict": verdict,
        "selection": selection.sentence if selection and selection.kind != "none" else None,
        "reliability": _reliability(raw, classes),
        "reliability_after": _reliability(scaled, classes),
    }


def _figures(found: Floats, classes: NDArray[np.int64]) -> dict[str, float]:
    confidence, right = found.max(axis=1), found.argmax(axis=1) == classes
    of_label = np.maximum(found[np.arange(len(classes)), classes], np.finfo(np.float64).tiny)
    one_hot = np.eye(found.shape[1])[classes]
    return {
        "ece": calibration_error(confidence, right),
        "log_loss": float(-np.log(of_label).mean()),
        "brier": float(((found - one_hot) ** 2).sum(axis=1).mean()),
        "mean_confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
    }


def _expected_if_calibrated(confidence: Floats, seed: int, candidates: int) -> tuple[float, float]:
    """Upper percentiles of the error if confidence equals the probability of a right answer.

    The 95th, and the one that any of `candidates` models exceeds with probability 5 % at most.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        calibration_error(confidence, rng.random(len(confidence)) < confidence)
        for _ in range(SIMULATIONS * min(candidates, 10))
    ]
    plain, corrected = np.quantile(drawn, [0.95, 1 - 0.05 / candidates])
    return float(plain), float(corrected)


def _reliability(found: Floats, classes: NDArray[np.int64]) -> list[dict[str, Any]]:
    confidence, right = found.max(axis=1), found.argmax(axis=1) == classes
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    diagram = []
    for index in np.unique(bins):
        inside = bins == index
        hits, rows = int(right[inside].sum()), int(inside.sum())
        diagram.append(
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "rows": rows,
                "confidence": float(confidence[inside].mean()),
                "accuracy": hits / rows,
                "interval": list(proportion_interval(hits, rows)),
            }
        )
    return diagram
