"""Table of a suite: the scores of each task over its seeds, with intervals.

A score has two sources of uncertainty, each with its own interval:

    seeds  other runs of the same recipe; Student's t over the runs
    rows   another validation set of this size; the mean of the runs' interval ends

Neither interval covers the other source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trainyard.config import TrainConfig
from trainyard.glue.config import SuiteConfig
from trainyard.glue.recipes import REFERENCES, get_recipe
from trainyard.stats import mean_interval
from trainyard.tasks import get_task

_COMMON = ("max_steps", "max_length", "mixed_precision")
"""Flags that no recipe sets, and that can make a run differ from a published run."""


def summary(
    configs: Mapping[str, TrainConfig],
    finished: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Return an entry per task, the average over tasks, and published scores, for glue.json.

    Args:
        configs: Config of each run, by run name.
        finished: Results of `fit`, by run name.
        failed: Reasons for failures, by run name.
    """
    tasks = []
    for task in dict.fromkeys(config.task for config in configs.values()):
        runs = {c.seed: name for name, c in configs.items() if c.task == task}
        done = {seed: finished[name] for seed, name in runs.items() if name in finished}
        tasks.append(
            {
                "task": task,
                "seeds": sorted(done),
                "failed": {name: failed[name] for name in runs.values() if name in failed},
                "one_answer": {
                    runs[seed]: run["one_answer"] for seed, run in done.items() if run["one_answer"]
                },
                "versions": {runs[seed]: run["versions"] for seed, run in done.items()},
                **_figures(done),
                "samples_of": _samples(task, done),
                "recipe": _recipe(next(c for c in configs.values() if c.task == task)),
            }
        )
    return {
        "tasks": tasks,
        "average": _average(tasks),
        "references": [asdict(reference) for reference in REFERENCES],
        "versions": {package: ", ".join(made) for package, made in versions_of_runs(tasks).items()},
    }


def versions_of_runs(tasks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Return, by package and version, the names of the runs that used them."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in tasks:
        for name, versions in row["versions"].items():
            for package, version in versions.items():
                found.setdefault(package, {}).setdefault(version or "unknown", []).append(name)
    return found


def _figures(done: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of every evaluation split over the seeds, and their summaries.

    `score` summarizes the score of `fit`, a fraction. `glue` summarizes the mean of all metrics, in
    percent.
    """
    metrics: list[dict[str, Any]] = []
    results = list(done.values())
    constant = any(run["one_answer"] for run in results)
    for split, named in (results[0]["metrics"] if results else {}).items():
        for name in named:
            values = {seed: run["metrics"][split][name] for seed, run in done.items()}
            ends = np.mean([run["intervals"][split][name] for run in results], axis=0)
            metrics.append(
                {
                    "split": split,
                    "metric": name,
                    "values": values,
                    **_over_seeds(list(values.values()), constant=constant),
                    "rows_interval": [float(end) for end in ends],
                }
            )
    glue = {seed: 100 * float(np.mean([m["values"][seed] for m in metrics])) for seed in done}
    speeds = [run["train_samples_per_second"] for run in results]
    known = [speed for speed in speeds if speed is not None]
    return {
        "metrics": metrics,
        "score": _over_seeds([run["score"] for run in results], constant=constant),
        "glue": {"values": glue, **_over_seeds(list(glue.values()), constant=constant)},
        "seconds": float(sum(run["seconds"] for run in results)),
        "train_samples_per_second": float(np.median(known)) if known else None,
        "rows": dict(results[0]["rows"]) if results else {},
    }


def _over_seeds(values: Sequence[float], *, constant: bool = False) -> dict[str, Any]:
    """Return the mean, standard deviation and 95 % Student interval of the scores of several runs.

    The latter two are None for a single run. They are also None for equal scores of `constant`
    runs, which predict the same label for every row: such scores are not repeated measurements.
    """
    if not values:
        return {"mean": None, "sd": None, "seeds_interval": None}
    mean, low, high = mean_interval(values)
    several = len(values) > 1 and not (constant and min(values) == max(values))
    return {
        "mean": mean,
        "sd": float(np.std(values, ddof=1)) if several else None,
        "seeds_interval": [low, high] if several else None,
    }


def _samples(task: str, done: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Return the official sizes of those splits from which a run used a sample of the rows."""
    official = get_task(task).rows
    counts = [item for run in done.values() for item in run["rows"].items()]
    return {split: official[split] for split, count in counts if count < official.get(split, 0)}


def _recipe(config: TrainConfig) -> dict[str, Any]:
    recipe = get_recipe(config.task)
    own = {**recipe.fields, **{name: getattr(SuiteConfig, name) for name in _COMMON}}
    shown = {name: getattr(config, name) for name in own}
    warm = config.resolved_run_name.endswith(f"-from-{recipe.warm_start}")
    return {
        **shown,
        "model": config.model_name_or_path,
        "warm_start": recipe.warm_start if warm else None,
        "changed": {name: value for name, value in shown.items() if value != own[name]},
        "source": recipe.source,
    }


def _average(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return GLUE's average in percent: the mean over tasks of the mean of each task's metrics.

    If all tasks have the same seeds, its interval is over the averages of each seed; else it has
    none.
    """
    counted = [row for row in tasks if row["seeds"] and get_recipe(row["task"]).in_average]
    seeds = counted[0]["seeds"] if counted else []
    if all(row["seeds"] == seeds for row in counted):
        values = [
            float(np.mean([row["glue"]["values"][seed] for row in counted])) for seed in seeds
        ]
        average = _over_seeds(values, constant=any(row["one_answer"] for row in counted))
    else:
        average = _over_seeds([float(np.mean([row["glue"]["mean"] for row in counted]))])
    return {"tasks": [row["task"] for row in counted], **average}
