"""Weak slices of a model: groups of rows with larger errors than all other rows."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.evaluation.measures import label_words, row_errors
from trainyard.metrics import decode, get_metric
from trainyard.stats import mean_interval, metric_interval, proportion_interval
from trainyard.tasks import Task

BINS = 4
MOST_VALUES = 20
FALSE_DISCOVERY_RATE = 0.05


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

    `error` is the share of wrong rows (Wilson interval), for a regression the mean absolute error
    (Student-t interval). `score` is the headline metric with its interval over rows. A `weak`
    slice has a larger error than all other rows, at a false discovery rate of 5 % (Benjamini and
    Hochberg 1995). The test is Fisher's exact test, for a regression Mann-Whitney.
    """
    errors = row_errors(task, logits, labels)
    predictions, references = decode(task.problem_type, logits), np.asarray(labels)
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
                entry |= {"score": _score(task, *mine), "score_interval": list(interval)}
            found.append(entry)
            p_values.append(_p_value(task, errors[inside], errors[~inside]))
    if found:
        for entry, p in zip(found, _adjusted(p_values), strict=True):
            entry |= {"p_value": p, "weak": p < FALSE_DISCOVERY_RATE}
    return found


def numeric_groups(values: NDArray[np.float64], unit: str = "") -> dict[str, NDArray[np.bool_]]:
    """Group rows by quartiles of a number; fewer if values repeat. NaN and infinity are a group."""
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1)))
    shown = _told_apart(edges)
    groups = {f"{shown[0]}{unit}": known}
    if len(edges) > 1:
        groups = {}
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            inside = (values <= high) & ((values >= low) if i == 0 else (values > low))
            prefix = f"{shown[i]} to" if i == 0 else f"over {shown[i]} to"
            groups[f"{prefix} {shown[i + 1]}{unit}"] = inside
    return groups if known.all() else {**groups, "(no number)": ~known}


def _told_apart(numbers: NDArray[np.float64]) -> list[str]:
    """Format numbers with the fewest digits that keep them distinct: equal names would merge groups."""
    told = ([f"{number:.{digits}g}" for number in numbers] for digits in range(6, 18))
    return next(words for words in told if len(set(words)) == len(numbers))


def column_groups(values: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Group rows by value; many numbers by quartiles; the rarest of many names in one group."""
    array = np.asarray(values, dtype=object)
    names, codes, counts = np.unique(array.astype(str), return_inverse=True, return_counts=True)
    if len(names) <= MOST_VALUES:
        return {str(name): codes == i for i, name in enumerate(names)}
    try:
        numbers = array.astype(np.float64)
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


def _score(task: Task, predictions: NDArray[Any], references: NDArray[Any]) -> float:
    return get_metric(task.score).function(predictions, references)


def _p_value(task: Task, inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    from scipy.stats import fisher_exact, mannwhitneyu

    if task.problem_type == "regression":
        return float(mannwhitneyu(inside, outside, alternative="greater").pvalue)
    table = [[int(group.sum()), len(group) - int(group.sum())] for group in (inside, outside)]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _adjusted(p_values: list[float]) -> list[float]:
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)]
