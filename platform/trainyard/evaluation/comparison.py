"""Two models on the same rows: is the first better, by how much, and how sure is that?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.metrics import decode, get_metric
from trainyard.stats import distinct_rows, paired_bootstrap, statistic_of
from trainyard.tasks import Task

LEVEL = 0.05
SWAPS = 10_000
_CELLS_IN_ALL = 1 << 22  # 32 MiB in each temporary array


def compare(
    task: Task,
    logits: NDArray[Any],
    other_logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    names: tuple[str, str],
    seed: int,
) -> dict[str, Any]:
    """Paired comparison by every metric of the task, with the verdict in words on its headline.

    Accuracy is decided by McNemar's exact test (McNemar 1947), of a regression every metric by the
    paired bootstrap over rows. Where labels are compared, few rows differ, and of few the bootstrap
    is too sure: there the permutation test must agree with it. All at the 5 % level. Positive
    differences favor the first model, but for an error.
    """
    ours, theirs = (decode(task.problem_type, found) for found in (logits, other_logits))
    references = np.asarray(labels)
    metrics: dict[str, dict[str, Any]] = {}
    for name in task.metrics:
        found = paired_bootstrap(name, ours, theirs, references, seed=seed)
        metrics[name] = {
            "difference": found.difference,
            "interval": [found.low, found.high],
            "test": "paired bootstrap",
            "verdict": found.verdict,
        }
        if get_metric(name).counts_rows:
            wrong = [_is_wrong(answers, references) for answers in (ours, theirs)]
            test = mcnemar(int((~wrong[0] & wrong[1]).sum()), int((wrong[0] & ~wrong[1]).sum()))
            metrics[name] |= {"test": "McNemar", **test}
        elif get_metric(name).inputs != ("values",):
            p = permutation_test(name, ours, theirs, references, seed=seed)
            metrics[name] |= {"test": "paired bootstrap and permutation", "p_value": p}
            if p >= LEVEL:
                metrics[name]["verdict"] = "not distinguishable"
    return {"metrics": metrics, "verdict": _words(task, metrics[task.score], names)}


def permutation_test(
    metric: str,
    predictions: NDArray[Any],
    baseline: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int,
) -> float:
    """Two-sided p-value: how often the difference is as large after coins swapped answers of rows.

    Of two models that are equally good, either could have given either answer (approximate
    randomization: Noreen 1989). With very many distinct rows fewer than 10,000 throws are drawn,
    never under 200.
    """
    first, counts = distinct_rows(predictions, baseline, references)
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
    drawn = np.random.default_rng(seed).binomial(counts, 0.5, size=(swaps, len(counts)))
    observed = differences(np.zeros((1, len(counts)), np.int64))
    return float((1 + (differences(drawn) >= observed - 1e-12).sum()) / (1 + swaps))


def mcnemar(only_first_right: int, only_second_right: int) -> dict[str, Any]:
    """McNemar's exact test on the rows that one model has right and the other wrong."""
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


def _words(task: Task, found: dict[str, Any], names: tuple[str, str]) -> str:
    low, high = found["interval"]
    by = f"{task.score} {found['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}"
    by += f", {found['test']}" + (f" p = {found['p_value']:.3g})" if "p_value" in found else ")")
    if found["verdict"] == "not distinguishable":
        return f"{names[0]} and {names[1]} cannot be told apart on these rows: {by}"
    return f"{names[0]} is {found['verdict']} than {names[1]}: {by}"
