"""Table of a suite: the scores of each task over its seeds, with intervals.

Two things make a figure uncertain, and each has its interval: the seed (other runs of the same
recipe; Student's t over the runs) and the rows (another validation set of this size; the mean of the
runs' own ends). One interval says nothing about the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trainyard.config import TrainConfig
from trainyard.evaluation import one_answer_words
from trainyard.glue.config import SuiteConfig
from trainyard.glue.recipes import REFERENCES, get_recipe
from trainyard.stats import mean_interval
from trainyard.tasks import get_task

_COMMON = ("max_steps", "max_length", "mixed_precision")
"""Flags that no recipe sets, and that make a run differ from a published one."""


def summary(
    configs: Mapping[str, TrainConfig],
    finished: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Build an entry for each task, the average over tasks, and the published scores.

    `finished` holds results of `fit` and `failed` reasons, by run name.
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
        "versions": {package: ", ".join(made) for package, made in _versions(tasks).items()},
    }


def _versions(tasks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Names of the runs by package and version."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in tasks:
        for name, versions in row["versions"].items():
            for package, version in versions.items():
                found.setdefault(package, {}).setdefault(version or "unknown", []).append(name)
    return found


def _figures(done: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of every evaluation split over the seeds; `score` is fit's, `glue` their mean in %."""
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
    """Mean, standard deviation and Student interval; the last two need more than one run.

    Equal scores of `constant` runs, which give one answer for every row, are no repeated measurement:
    they have neither.
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
    """Official sizes of the splits of which the runs had not every row."""
    official = get_task(task).rows
    counts = [item for run in done.values() for item in run["rows"].items()]
    return {split: official[split] for split, count in counts if count < official.get(split, 0)}


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """Fields the runs were trained with, and those that differ from the task's own recipe."""
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
    """GLUE's average, in per cent: over tasks, of the mean of each task's metrics.

    Its interval is over the averages of each seed, where all tasks have the same seeds.
    """
    counted = [row for row in tasks if row["seeds"] and get_recipe(row["task"]).in_average]
    found: dict[str, Any] = {"tasks": [row["task"] for row in counted]}
    if not counted:
        return {**found, "mean": None, "sd": None, "seeds_interval": None}
    seeds = counted[0]["seeds"]
    if all(row["seeds"] == seeds for row in counted):
        return {
            **found,
            **_over_seeds(
                [
                    float(np.mean([row["glue"]["values"][seed] for row in counted]))
                    for seed in seeds
                ],
                constant=any(row["one_answer"] for row in counted),
            ),
        }
    mean = float(np.mean([row["glue"]["mean"] for row in counted]))
    return {**found, "mean": mean, "sd": None, "seeds_interval": None}


def as_markdown(found: Mapping[str, Any]) -> str:
    """Format the table with its footnotes; figures in per cent."""
    lines = [
        f"# GLUE, `{found['model']}`",
        "",
        "| task | metric | seeds | mean | sd | 95 % over seeds | 95 % over rows | train rows | "
        "samples/s | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line for row in found["tasks"] for line in _markdown_rows(row)),
        "",
        _average_words(found["average"], found["tasks"]),
        "",
        *(f"- {_literal(note)}" for note in notes(found["tasks"])),
        "",
        "## Compared with published results (validation splits)",
        "",
        *_published(found),
        "",
    ]
    return "\n".join(lines)


def _markdown_rows(row: Mapping[str, Any]) -> list[str]:
    mark = " *" if row["samples_of"] else ""
    if not row["metrics"]:
        return [f"| {row['task']} | {no_figure(row)} | 0 | | | | | | | |"]
    lines = []
    for i, metric in enumerate(row["metrics"]):
        name = metric_name(metric)
        speed = row["train_samples_per_second"]
        last = ("", "", "")
        if i == 0:
            shown = f"{speed:.0f}" if speed else ""
            trained = row["rows"].get("train")  # unknown of the runs of an older version
            rows = "" if trained is None else f"{trained:,}"
            last = (rows, shown, f"{row['seconds']:.0f}")
        cells = (
            f"{row['task']}{mark}" if i == 0 else "",
            name,
            str(len(row["seeds"])) if i == 0 else "",
            percent(metric["mean"]),
            percent(metric["sd"]),
            span(metric["seeds_interval"]),
            span(metric["rows_interval"]),
            *last,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def percent(share: float | None) -> str:
    """Format a share in per cent; nothing for none."""
    return "" if share is None else f"{100 * share:.1f}"


def span(interval: Sequence[float] | None) -> str:
    """Format an interval of shares, in per cent."""
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _literal(text: str) -> str:
    """Escape stars and angle brackets for Markdown: a path may hold <task>."""
    return text.replace("*", r"\*").replace("<", r"\<")


def figures(row: Mapping[str, Any]) -> str:
    """Format all means of a task for one cell, as published rows print them."""
    mark = " *" if row["samples_of"] else ""
    return "/".join(percent(metric["mean"]) for metric in row["metrics"]) + mark


def no_figure(row: Mapping[str, Any]) -> str:
    """Reason that a task has no figure."""
    return "failed" if row["failed"] else "not run yet"


def average_mark(average: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return the mark of a sample when one is among the tasks of the average."""
    sampled = any(row["samples_of"] for row in tasks if row["task"] in average["tasks"])
    return " *" if sampled else ""


def _average_words(average: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    if average["mean"] is None:
        return "No average: none of the tasks that count in it is finished."
    many = len(average["tasks"])
    words = f"Average of {many} task{'s' if many > 1 else ''} ({', '.join(average['tasks'])}): "
    words += f"**{average['mean']:.1f}**{_literal(average_mark(average, tasks))}"
    if average["seeds_interval"]:
        low, high = average["seeds_interval"]
        words += f", 95 % over seeds {low:.1f} to {high:.1f}"
    return words + ". A task of several metrics or splits counts by their mean; WNLI is left out."


def notes(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes to the table, a sentence each; `*` marks a sample."""
    found = [
        "Over seeds: Student's t over runs. Over rows: Wilson's interval of an accuracy, of other "
        "metrics the bootstrap's, and of several runs the mean of the ends. The validation split also "
        "chose the best checkpoint of each run. Samples per second are the median of the runs, seconds "
        "those of all runs together.",
        "Published figures are as printed at their sources: one figure of a task with two metrics "
        "may be either of them.",
    ]
    for row in tasks:
        for split, official in row["samples_of"].items():
            found.append(
                f"* {row['task']} {split} is a sample: {row['rows'][split]:,} of {official:,} rows, "
                "so the figure is not comparable with published ones."
            )
        if changed := row["recipe"]["changed"]:
            fields = ", ".join(f"{name} {value}" for name, value in changed.items())
            found.append(f"{row['task']} was not trained by its own recipe, but with {fields}.")
        if source := row["recipe"]["warm_start"]:
            found.append(
                f"{row['task']} starts from the {source} model of the same seed, and not from "
                "the pretrained one as those who published did unless they say so."
            )
        found += [
            f"{name}: {one_answer_words(answers)}" for name, answers in row["one_answer"].items()
        ]
        found += [f"{name} failed: {reason}" for name, reason in row["failed"].items()]
    return found + [
        f"The runs were made with different versions of {package}: "
        + "; ".join(f"{version} ({', '.join(names)})" for version, names in made.items())
        + "."
        for package, made in _versions(tasks).items()
        if len(made) > 1
    ]


def metric_name(metric: Mapping[str, Any]) -> str:
    """Name a metric; for MNLI's two validation splits with the split."""
    split = metric["split"].removeprefix("validation").strip("_")
    return f"{metric['metric']} ({split})" if split else str(metric["metric"])


def _published(found: Mapping[str, Any]) -> list[str]:
    names = [row["task"] for row in found["tasks"]]
    lines = [
        f"| model | {' | '.join(names)} | source |",
        f"| --- {'| --- ' * len(names)}| --- |",
        f"| **ours** | {' | '.join(map(figures, found['tasks']))} | this suite |",
    ]
    for reference in found["references"]:
        printed = ["/".join(f"{v:g}" for v in reference["scores"].get(name, ())) for name in names]
        lines.append(f"| {reference['model']} | {' | '.join(printed)} | {reference['source']} |")
    return lines
