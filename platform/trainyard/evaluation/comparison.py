"""Paired comparison of two models on the same rows, with tests and intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.evaluation.selection import Selection
from trainyard.metrics import decode, get_metric
from trainyard.stats import distinct_rows, group_numbers, paired_bootstrap, statistic_of
from trainyard.tasks import Task

LEVEL = 0.05
WITHHELD = "withheld"
"""Verdict on a model that these rows favor, because they chose it among many."""
SWAPS = 10_000
_CELLS_IN_ALL = 1 << 22  # 32 MiB per temporary array


def compare(
    task: Task,
    logits: NDArray[Any],
    other_logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    names: tuple[str, str],
    seed: int,
    selections: Sequence[Selection] = (),
    groups: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Paired comparison by every metric of the task, with the verdict in words on its headline.

    Accuracy is decided by McNemar's exact test (McNemar 1947), metrics of a regression by the paired
    bootstrap over rows. Metrics over labels need the bootstrap and the permutation test to agree:
    few rows differ, and the bootstrap is too confident on few. All tests are at the 5 % level.
    Positive differences favor the first model, except for errors.

    `selections` describe the part of these rows in choosing the first and the second model. A model
    chosen among its run's evaluations must win by more (Bonferroni). A model chosen among trials
    is never called better. With `groups`, whole groups of rows are drawn and swapped instead of rows.
    """
    ours, theirs = (decode(task.problem_type, found) for found in (logits, other_logits))
    references = np.asarray(labels)
    metrics = {
        name: _compare_by(name, ours, theirs, references, seed, selections, groups)
        for name in task.metrics
    }
    return {
        "metrics": metrics,
        "rows": len(references),
        "verdict": _words(task, metrics[task.score], names, selections),
    }


def _compare_by(
    name: str,
    ours: NDArray[Any],
    theirs: NDArray[Any],
    references: NDArray[Any],
    seed: int,
    selections: Sequence[Selection],
    groups: NDArray[Any] | None,
) -> dict[str, Any]:
    metric = get_metric(name)
    limits = [selection.candidates for selection in selections] or [1, 1]
    candidates = (limits[0] or 1, limits[1] or 1)
    plain = paired_bootstrap(name, ours, theirs, references, seed=seed, groups=groups)
    found: dict[str, Any] = {
        "difference": plain.difference,
        "interval": [plain.low, plain.high],
        "test": "paired bootstrap",
        "verdict": plain.verdict,
    }
    if candidates != (1, 1):
        corrected = paired_bootstrap(
            name, ours, theirs, references, seed=seed, groups=groups, candidates=candidates
        )
        found |= {
            "corrected_interval": [corrected.low, corrected.high],
            "candidates": list(candidates),
            "verdict": corrected.verdict,
        }
    better = (plain.difference > 0) == metric.higher_is_better
    if metric.counts_rows and groups is None:
        wrong = [_is_wrong(answers, references) for answers in (ours, theirs)]
        test = mcnemar(int((~wrong[0] & wrong[1]).sum()), int((wrong[0] & ~wrong[1]).sum()))
        found |= {"test": "McNemar", **test}
    elif metric.inputs != ("values",):
        p = permutation_test(name, ours, theirs, references, seed=seed, groups=groups)
        found |= {"test": "paired bootstrap and permutation", "p_value": p}
    if groups is not None:
        found["test"] += " of groups"
    correction = candidates[0 if better else 1]
    if "p_value" in found:
        if correction > 1:
            found["corrected_p_value"] = min(1.0, correction * found["p_value"])
        if correction * found["p_value"] >= LEVEL:
            found["verdict"] = "not distinguishable"
    if found["verdict"] == "better" and limits[0] is None:
        found["verdict"] = WITHHELD
    if found["verdict"] == "worse" and limits[1] is None:
        found["verdict"] = WITHHELD
    return found


def permutation_test(
    metric: str,
    predictions: NDArray[Any],
    baseline: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> float:
    """Two-sided p-value of the difference, from random swaps of the models' answers per row.

    Under the null hypothesis the models' answers are exchangeable (approximate randomization: Noreen
    1989). With very many distinct rows fewer than 10,000 swaps are drawn, but at least 200.
    """
    group = None if groups is None else group_numbers(groups)
    columns = [predictions, baseline, references, *([] if group is None else [group])]
    first, counts = distinct_rows(*columns)
    right = references[first]
    statistic = statistic_of(
        metric,
        np.concatenate([predictions[first], baseline[first]]),
        np.concatenate([right, right]),
    )

    def differences(swapped: NDArray[Any]) -> NDArray[np.float64]:
        kept = counts - swapped
        sides = np.hstack([kept, swapped]), np.hstack([swapped, kept])
        ours, theirs = (statistic(side.astype(np.float64)) for side in sides)
        return np.abs(ours - theirs)

    swaps = int(np.clip(_CELLS_IN_ALL // len(counts), 200, SWAPS))
    rng = np.random.default_rng(seed)
    if group is None:
        drawn = rng.binomial(counts, 0.5, size=(swaps, len(counts)))
    else:
        coins = rng.integers(2, size=(swaps, int(group.max()) + 1))
        drawn = coins[:, group[first]] * counts
    observed = differences(np.zeros((1, len(counts)), np.int64))
    return float((1 + (differences(drawn) >= observed - 1e-12).sum()) / (1 + swaps))


def mcnemar(only_first_right: int, only_second_right: int) -> dict[str, Any]:
    """McNemar's exact test on the rows that only one model has right."""
    from scipy.stats import binomtest

    discordant = only_first_right + only_second_right
    p = float(binomtest(only_first_right, discordant).pvalue) if discordant else 1.0
    better = "better" if only_first_right > only_second_right else "worse"
    return {
        "only_first_right": only_first_right,
        "only_second_right": only_second_right,
        "p_value": p,
        "verdict": better if p < LEVEL else "not distinguishable",
    }


def _is_wrong(predictions: NDArray[Any], references: NDArray[Any]) -> NDArray[np.bool_]:
    differs = predictions != references
    return np.asarray(differs.any(axis=1) if differs.ndim == 2 else differs)


def _words(
    task: Task, found: dict[str, Any], names: tuple[str, str], selections: Sequence[Selection]
) -> str:
    low, high = found.get("corrected_interval", found["interval"])
    by = f"{task.score} {found['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}"
    if "candidates" in found:
        by += f", corrected for the best of {' and of '.join(map(str, found['candidates']))}"
    p = found.get("corrected_p_value", found.get("p_value"))
    by += f", {found['test']}" + ("" if p is None else f" p = {p:.3g}") + ")"
    if found["verdict"] == WITHHELD:
        side = 0 if (found["difference"] > 0) == get_metric(task.score).higher_is_better else 1
        return (
            f"no verdict on {names[0]} and {names[1]}: {selections[side].sentence}, so these rows "
            f"favor it; compare on other rows ({by})"
        )
    unknown = "".join(f"; {each.sentence}" for each in selections if each.kind == "unknown")
    if found["verdict"] == "not distinguishable":
        return f"{names[0]} and {names[1]} cannot be distinguished on these rows: {by}"
    return f"{names[0]} is {found['verdict']} than {names[1]}: {by}{unknown}"
