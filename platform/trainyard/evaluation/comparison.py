"""Two models on the same rows: is the first better, by how much, and how sure is that?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.metrics import decode
from trainyard.stats import paired_bootstrap
from trainyard.tasks import Task


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

    Accuracy is decided by McNemar's exact test (McNemar 1947), every other metric by the paired
    bootstrap over rows; both at the 5 % level. Positive differences favour the first model, but
    for an error.
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
    if "accuracy" in metrics:
        wrong = [_is_wrong(found, references) for found in (ours, theirs)]
        test = mcnemar(int((~wrong[0] & wrong[1]).sum()), int((wrong[0] & ~wrong[1]).sum()))
        metrics["accuracy"] |= {"test": "McNemar", **test}
    return {"metrics": metrics, "verdict": _words(task, metrics[task.score], names)}


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
        "verdict": better if p < 0.05 else "not distinguishable",
    }


def _is_wrong(predictions: NDArray[Any], references: NDArray[Any]) -> NDArray[np.bool_]:
    differs = predictions != references
    return np.asarray(differs.any(axis=1) if differs.ndim == 2 else differs)


def _words(task: Task, found: dict[str, Any], names: tuple[str, str]) -> str:
    low, high = found["interval"]
    by = f"{task.score} {found['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}"
    by += f", McNemar p = {found['p_value']:.3g})" if "p_value" in found else ", paired bootstrap)"
    if found["verdict"] == "not distinguishable":
        return f"{names[0]} and {names[1]} cannot be told apart on these rows: {by}"
    return f"{names[0]} is {found['verdict']} than {names[1]}: {by}"
