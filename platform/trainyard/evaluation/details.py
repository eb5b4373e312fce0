"""Details of a score: classes, confusion, worst errors, weak slices, calibration.

Expected calibration error and temperature scaling follow Guo et al., On Calibration of Modern
Neural Networks (ICML 2017). On a finite sample, even a perfectly calibrated model has an error
above 0. `expected_if_calibrated` is the 95th percentile of the error of such a model on a sample
with the same confidences (consistency resampling, Bröcker and Smith 2007).

In this module, `logits` has the shape [rows, labels]. `labels` holds class indices or targets of
shape [rows], or 0/1 of shape [rows, labels].
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import false_discovery_control, fisher_exact, mannwhitneyu
from sklearn.metrics import confusion_matrix

from trainyard.data import EMPTY
from trainyard.evaluation.comparison import Selection, wrong_rows
from trainyard.inference import COLDEST, HOTTEST
from trainyard.metrics import answers, decode, folds, get_metric
from trainyard.stats import bootstrap_interval, mean_interval, metric_interval, proportion_interval
from trainyard.tasks import Task

QUARTERS = 4
MOST_VALUES = 20
"""Maximum groups of a column."""
FALSE_DISCOVERY_RATE = 0.05
BINS = 15
"""Number of bins of the confidence, of equal width."""
SIMULATIONS = 200

Floats = NDArray[np.float64]


def confusion(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> list[list[int]] | None:
    """Count rows by [label][prediction]; return None unless each row has exactly one class."""
    if task.problem_type != "single_label_classification":
        return None
    predictions = decode(task.problem_type, logits, task.cuts)
    matrix = confusion_matrix(labels, predictions, labels=range(task.num_labels))
    return [[int(count) for count in row] for row in matrix]


def per_class(
    task: Task, logits: NDArray[Any], labels: NDArray[Any], *, seed: int
) -> list[dict[str, Any]]:
    """Compute precision, recall (Wilson intervals) and F1 (bootstrap interval) of each label.

    Returns one entry per class or label; empty for a regression.
    """
    if task.problem_type == "regression":
        return []
    predictions, references = decode(task.problem_type, logits, task.cuts), np.asarray(labels)
    found = []
    for index, name in enumerate(task.labels):
        if references.ndim == 2:
            predicted, right = predictions[:, index] > 0, references[:, index] > 0
        else:
            predicted, right = predictions == index, references == index
        hits = int((predicted & right).sum())
        said, support = int(predicted.sum()), int(right.sum())
        of_class = predicted.astype(np.int64), right.astype(np.int64)
        found.append(
            {
                "label": name,
                "rows": support,
                "predicted": said,
                "precision": hits / said if said else 0.0,
                "precision_interval": list(proportion_interval(hits, said)),
                "recall": hits / support if support else 0.0,
                "recall_interval": list(proportion_interval(hits, support)),
                "f1": 2 * hits / (said + support) if said + support else 0.0,
                "f1_interval": list(bootstrap_interval("f1", *of_class, seed=seed)),
            }
        )
    return found


def row_errors(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the error of each row, shape [rows]: absolute error for a regression, else 0 or 1."""
    predictions, references = decode(task.problem_type, logits, task.cuts), np.asarray(labels)
    if task.problem_type == "regression":
        return np.asarray(np.abs(predictions.astype(np.float64) - references), np.float64)
    return np.asarray(wrong_rows(predictions, references), np.float64)


def row_losses(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    if task.problem_type == "regression":
        return row_errors(task, logits, labels)
    scores, classes = decisions(task.problem_type, logits, labels)
    of_label = probabilities(scores)[np.arange(len(classes)), classes]
    losses = -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))
    return np.asarray(losses.reshape(len(labels), -1).sum(axis=1))


def worst_rows(
    task: Task, logits: NDArray[Any], labels: NDArray[Any], limit: int
) -> list[dict[str, Any]]:
    """Return the `limit` wrong rows of largest loss, largest first, without their texts."""
    losses = row_losses(task, logits, labels)
    losses[row_errors(task, logits, labels) == 0] = -1.0
    order = np.argsort(-losses, kind="stable")[:limit]
    predictions = decode(task.problem_type, logits, task.cuts)
    return [
        {
            "row": int(row),
            "label": label_words(task, labels[row]),
            "prediction": label_words(task, predictions[row]),
            "loss": float(losses[row]),
        }
        for row in order
        if losses[row] >= 0
    ]


def label_words(task: Task, label: Any) -> Any:
    """Convert a label to a name, a list of names, or a number; None for a withheld label."""
    if task.problem_type == "regression":
        return round(float(label), 3)
    if task.problem_type == "multi_label_classification":
        return [name for name, on in zip(task.labels, label, strict=True) if on]
    return task.labels[int(label)] if label >= 0 else None


def slices(
    task: Task,
    logits: NDArray[Any],
    labels: NDArray[Any],
    lengths: NDArray[Any],
    columns: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Compute figures per group of rows: by length in tokens, by label and by further `columns`.

    Only the rows of single-label tasks are grouped by label. `error` is the share of wrong rows
    (Wilson interval), or for a regression the mean absolute error (Student's t interval). `score` is
    the headline metric with its interval over rows. A `weak` slice has a larger error than all other
    rows, at a false discovery rate of 5 % (Benjamini and Hochberg 1995). The test is one-sided:
    Fisher's exact test, or Mann-Whitney for a regression.
    """
    errors = row_errors(task, logits, labels)
    predictions = answers(task.score, task.problem_type, logits, task.cuts)
    references = np.asarray(labels)
    groups = {"length": numeric_groups(lengths.astype(np.float64), " tokens")}
    if task.problem_type == "single_label_classification":
        groups["label"] = {
            str(label_words(task, i)): references == i for i in range(task.num_labels)
        }
    for name, values in columns.items():
        groups[name] = column_groups(values)
    found, p_values = [], []
    for column, members in groups.items():
        for value, inside in members.items():
            if not inside.any() or inside.all():
                continue
            entry = {"slice": column, "value": value, "rows": int(inside.sum())}
            entry |= _error(task, errors[inside])
            entry["error_of_others"] = float(errors[~inside].mean())
            if column != "label":  # most headline metrics mean nothing on rows of a single label
                mine = predictions[inside], references[inside]
                interval = metric_interval(task.score, *mine, seed=seed)
                headline = get_metric(task.score).function(*mine)
                entry |= {"score": headline, "score_interval": list(interval)}
            found.append(entry)
            p_values.append(_p_value(task, errors[inside], errors[~inside]))
    if found:
        for entry, p in zip(found, false_discovery_control(p_values).tolist(), strict=True):
            entry |= {"p_value": p, "weak": p < FALSE_DISCOVERY_RATE}
    return found


def numeric_groups(values: NDArray[np.float64], unit: str = "") -> dict[str, NDArray[np.bool_]]:
    """Return masks of the rows in each quartile of `values`, by name of the group.

    Repeated values can give fewer groups. NaN and infinity form a group. At least one value must be finite.
    """
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, QUARTERS + 1)))
    shown = _distinct_names(edges)
    groups = {f"{shown[0]}{unit}": known}
    if len(edges) > 1:
        groups = {}
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            inside = (values <= high) & ((values >= low) if i == 0 else (values > low))
            prefix = f"{shown[i]} to" if i == 0 else f"over {shown[i]} to"
            groups[f"{prefix} {shown[i + 1]}{unit}"] = inside
    return groups if known.all() else {**groups, "(no number)": ~known}


def _distinct_names(numbers: NDArray[np.float64]) -> list[str]:
    """Format numbers with the fewest digits that keep them distinct: equal names would merge groups."""
    words = ([f"{number:.{digits}g}" for number in numbers] for digits in range(6, 18))
    return next(names for names in words if len(set(names)) == len(numbers))


def column_groups(values: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return masks of the rows of each value, by name of the group.

    Above MOST_VALUES values, numbers are grouped by quartile, and the rarest names form one group.
    Among numbers, EMPTY is no number.
    """
    array = np.asarray(values, dtype=object)
    names, codes, counts = np.unique(array.astype(str), return_inverse=True, return_counts=True)
    if len(names) <= MOST_VALUES:
        return {str(name): codes == i for i, name in enumerate(names)}
    try:
        numbers = np.where(array == EMPTY, np.nan, array).astype(np.float64)
    except ValueError:
        numbers = np.full(len(array), np.nan)
    if np.isfinite(numbers).any():
        return numeric_groups(numbers)
    common = np.argsort(-counts, kind="stable")[: MOST_VALUES - 1]
    groups = {str(names[i]): codes == i for i in common}
    groups["(all others)"] = ~np.isin(codes, common)
    return groups


def _error(task: Task, errors: NDArray[np.float64]) -> dict[str, Any]:
    if task.problem_type == "regression":
        mean, low, high = mean_interval(errors.tolist())
        interval = [max(low, 0.0), high] if len(errors) > 1 else None  # one row has no spread
        return {"error": mean, "error_interval": interval}
    wrong = int(errors.sum())
    return {
        "error": wrong / len(errors),
        "error_interval": list(proportion_interval(wrong, len(errors))),
    }


def _p_value(task: Task, inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    if task.problem_type == "regression":
        return float(mannwhitneyu(inside, outside, alternative="greater").pvalue)
    table = [[int(group.sum()), len(group) - int(group.sum())] for group in (inside, outside)]
    return float(fisher_exact(table, alternative="greater").pvalue)


def decisions(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> tuple[Any, Any]:
    """Return the logits [decisions, classes] and the right class [decisions] of each decision.

    A decision is a row, or each label of a multi-label row.
    """
    if problem_type == "multi_label_classification":
        flat = logits.astype(np.float64).reshape(-1, 1)
        return np.hstack([np.zeros_like(flat), flat]), labels.astype(np.int64).ravel()
    return logits.astype(np.float64), labels.astype(np.int64)


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    return np.asarray(softmax(logits / temperature, axis=1))


def log_loss(logits: Floats, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Compute the mean negative log-likelihood, in nats."""
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Find the temperature from COLDEST to HOTTEST that minimizes log loss (bounded Brent search).

    The result is a bound if no temperature between the bounds is better. It is COLDEST if every
    prediction is correct.
    """
    found = minimize_scalar(
        lambda log_t: log_loss(logits, labels, float(np.exp(log_t))),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
    )
    inside = float(np.exp(found.x))
    return min((COLDEST, HOTTEST, inside), key=lambda t: log_loss(logits, labels, t))


def calibration_error(confidence: Floats, right: NDArray[Any]) -> float:
    """Compute the expected calibration error: the mean over rows of |accuracy - confidence|.

    Accuracy and confidence are means over the row's bin, one of 15 of equal width. The arguments
    have the shape [rows].
    """
    gap = np.bincount(_bins(confidence), right - confidence, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _bins(confidence: Floats) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def calibration(
    problem_type: str,
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    seed: int,
    selection: Selection | None = None,
) -> dict[str, Any]:
    """Measure calibration error and reliability of a split, before and after temperature scaling.

    The figures after scaling are cross-fitted: each fold is scored with a temperature fitted on the
    other folds. `temperature` is fitted on all rows.

    Accuracy is optimistic on rows that selected the model. So the verdict "overconfident" needs no
    correction. The verdict "underconfident" is corrected for a choice among a run's evaluations
    (Bonferroni). If no correction is possible, the verdict is None, unless it is "overconfident".
    """
    scores, classes = decisions(problem_type, logits, labels)
    raw = probabilities(scores)
    scaled = np.empty_like(raw)
    for held, others in folds(len(classes), seed):
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
    """Return two upper percentiles of the calibration error of a perfectly calibrated model.

    The first is the 95th. Any of `candidates` models exceeds the second with a probability of at
    most 5 % (Bonferroni).
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
    bins = _bins(confidence)
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
