"""The suite's table as one HTML page."""

from collections.abc import Mapping
from typing import Any

from trainyard.glue.table import average_mark, figures, metric_name, no_figure, notes, percent, span
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    charts,
    commit,
    number,
    render,
)


def page(found: Mapping[str, Any]) -> str:
    """HTML of what glue.json holds."""
    return render(
        f"GLUE: {found['model']}",
        [_results(found), _seeds(found), _beside(found), _recipes(found)],
        subtitle=commit(found["versions"]),
    )


def _results(found: Mapping[str, Any]) -> Section:
    average, rows, dots = found["average"], [], []
    for task in found["tasks"]:
        mark = " *" if task["samples_of"] else ""
        if not task["metrics"]:
            why = Cell(no_figure(task), status="failed" if task["failed"] else None)
            rows.append([task["task"], why, 0, *[None] * 7])
        for metric in task["metrics"]:
            low, high = metric["rows_interval"]
            rows.append(
                [
                    f"{task['task']}{mark}",
                    metric_name(metric),
                    len(task["seeds"]),
                    Cell(percent(metric["mean"]), sort=metric["mean"]),
                    Cell(percent(metric["sd"]), sort=metric["sd"]) if metric["sd"] else None,
                    span(metric["seeds_interval"]) or None,
                    span(metric["rows_interval"]),
                    task["rows"].get("train"),
                    task["train_samples_per_second"],
                    task["seconds"],
                ]
            )
            dots.append(
                {
                    "task": f"{task['task']}{mark} {metric_name(metric)}",
                    "per cent": 100 * metric["mean"], "low": 100 * low, "high": 100 * high,
                }
            )  # fmt: skip
    columns = [
        "task", "metric", "seeds", "mean", "sd", "95 % over seeds", "95 % over rows", "train rows",
        "samples/s", "seconds",
    ]  # fmt: skip
    interval = average["seeds_interval"]
    note = f"{number(interval[0])} to {number(interval[1])} over seeds" if interval else ""
    content: list[Any] = [
        Facts([(f"average of {len(average['tasks'])} tasks{average_mark(average, found['tasks'])}",
                Cell(number(average["mean"]), note=note))], wide=True),
        Table("Validation scores in per cent", columns, rows),
        Figure("Means, with 95 % intervals over rows",
               charts.dots(dots, "per cent", "task", low="low", high="high")),
        *(Text(note, "error" if " failed: " in note else "note") for note in notes(found["tasks"])),
    ]  # fmt: skip
    return Section("Results", content)


def _seeds(found: Mapping[str, Any]) -> Section:
    rows = [
        {"run": f"{task['task']} {metric_name(metric)}", "per cent": 100 * value, "seed": str(seed)}
        for task in found["tasks"]
        for metric in task["metrics"]
        for seed, value in metric["values"].items()
    ]
    return Section(
        "Each seed", [Figure("Scores of single runs", charts.dots(rows, "per cent", "run"))]
    )


def _beside(found: Mapping[str, Any]) -> Section:
    names = [task["task"] for task in found["tasks"]]
    rows = [["this suite", *map(figures, found["tasks"]), ""]]
    for reference in found["references"]:
        scores = ["/".join(f"{v:g}" for v in reference["scores"].get(name, ())) for name in names]
        rows.append([reference["model"], *scores, reference["source"]])
    return Section(
        "Beside published results", [Table("Validation scores", ["model", *names, "source"], rows)]
    )


def _recipes(found: Mapping[str, Any]) -> Section:
    keys = ("learning_rate", "num_train_epochs", "train_batch_size", "max_steps", "max_length",
            "warm_start")  # fmt: skip
    rows = [
        [task["task"], *(task["recipe"][key] for key in keys), task["recipe"]["source"]]
        for task in found["tasks"]
    ]
    return Section(
        "Recipes",
        [Table("What each task was trained with", ["task", *keys, "source"], rows)],
        folded=True,
    )
