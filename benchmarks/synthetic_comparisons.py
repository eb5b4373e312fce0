"""Simulate comparisons of two equally good models, to count false verdicts.

The first model is the best of several candidates on the rows of the comparison, like the best epoch
of a run. In grouped data, rows that share a group (a premise) tend to be right or wrong together.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binomtest

from trainyard.evaluation.comparison import Selection, compare
from trainyard.stats import metric_interval
from trainyard.tasks import get_task

EASE, EASE_SPREAD = 1.5, 1.5
"""Mean and standard deviation of a row's ease; the noise of a model has standard deviation 1."""


def rate(events: Iterable[bool], worlds: int) -> list[float]:
    """Return the share of worlds with an event, and its 95 % Clopper-Pearson interval."""
    hits = sum(map(bool, events))
    low, high = binomtest(hits, worlds).proportion_ci()
    return [round(float(value), 4) for value in (hits / worlds, low, high)]


def answers(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Build logits of a model that is right on the rows `right`."""
    return np.eye(2)[np.where(right, labels, 1 - labels)]


def best_of(
    candidates: int, rows: int, alike: float, task_name: str, worlds: int, *, corrected: bool
) -> dict[str, Any]:
    """Count false verdicts on the best of several candidates; `alike` is their correlation."""
    rng, task = np.random.default_rng(candidates), get_task(task_name)
    score: Callable[..., float] = _accuracy if task.score == "accuracy" else _f1
    chosen = Selection(kind="epochs", sentence="", candidates=candidates if corrected else 1)
    baseline = Selection(kind="none", sentence="")
    verdicts = []
    for world in range(worlds):
        ease = EASE + EASE_SPREAD * rng.standard_normal(rows)
        labels = (rng.random(rows) < 0.6).astype(np.int64)
        shared = np.sqrt(alike) * rng.standard_normal(rows)
        own = np.sqrt(1 - alike) * rng.standard_normal((candidates, rows))
        right = ease + shared + own > 0
        best = right[np.argmax([score(each, labels) for each in right])]
        other = ease + rng.standard_normal(rows) > 0
        found = compare(
            task, answers(best, labels), answers(other, labels), labels,
            names=("A", "B"), seed=world, selections=(chosen, baseline),
        )  # fmt: skip
        verdicts.append(found["metrics"][task.score]["verdict"])
    return {
        "metric": task.score, "best_of": candidates, "alike": alike, "rows": rows, "worlds": worlds,
        "corrected": corrected,
        "better": rate((v == "better" for v in verdicts), worlds),
        "worse": rate((v == "worse" for v in verdicts), worlds),
    }  # fmt: skip


def _accuracy(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:  # noqa: ARG001
    return float(right.mean())


def _f1(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    hits = float((right & (labels == 1)).sum())
    return float(2 * hits / (labels.sum() + hits + (~right & (labels == 0)).sum()))


def grouped(groups: int, rows_each: int, worlds: int, *, by_group: bool) -> dict[str, Any]:
    """Measure the coverage of an accuracy's interval, and false verdicts, on grouped rows."""
    rng, task = np.random.default_rng(groups), get_task("rte")
    truth = float(ndtr(EASE / np.sqrt(EASE_SPREAD**2 + 2)))
    none = Selection(kind="none", sentence="")
    held, verdicts = [], []
    rows = groups * rows_each
    group = np.repeat(np.arange(groups), rows_each)
    for world in range(worlds):
        labels = (rng.random(rows) < 0.5).astype(np.int64)
        ease = EASE + (EASE_SPREAD * rng.standard_normal(groups))[group]
        right = [
            ease + rng.standard_normal(groups)[group] + rng.standard_normal(rows) > 0
            for _ in range(2)
        ]
        given = group if by_group else None
        low, high = metric_interval(
            "accuracy", answers(right[0], labels).argmax(1), labels, seed=world, groups=given
        )
        held.append(low <= truth <= high)
        found = compare(
            task, answers(right[0], labels), answers(right[1], labels), labels,
            names=("A", "B"), seed=world, selections=(none, none), groups=given,
        )  # fmt: skip
        verdicts.append(found["metrics"]["accuracy"]["verdict"])
    return {
        "groups": groups, "rows_each": rows_each, "by_group": by_group, "worlds": worlds,
        "covered": rate(held, worlds),
        "wrong": rate((v in ("better", "worse") for v in verdicts), worlds),
    }  # fmt: skip
