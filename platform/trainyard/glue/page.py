"""The suite's table as one HTML page."""

from collections.abc import Mapping
from typing import Any

from trainyard.glue.table import average_mark, figures, metric_name, no_figure, notes, percent, span
from trainyard.report import kit
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    commit,
    number,
    number_cell,
    render,
)


def page(found: Mapping[str, Any]) -> str:
    """Render the content of glue.json as HTML."""
    return render(
        f"GLUE: {found['model']}",
        [_results(found), _seeds(found), _published(found), _recipes(found)],
        subtitle=_commit(found["versions"]),
    )


def _commit(versions: Mapping[str, str]) -> str:
    return "runs of several commits" if "," in versions.get("commit", "") else commit(versions)


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
                    number_cell(metric["mean"], percent(metric["mean"])),
                    number_cell(metric["sd"] or None, percent(metric["sd"])),
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
                    "score (%)": 100 * metric["mean"], "low": 100 * low, "high": 100 * high,
                }
            )  # fmt: skip
    columns = [
        "Task", "Metric", "Seeds", "Mean", "SD", "95% over seeds", "95% over rows",
        "Training rows", "Samples/s", "Seconds",
    ]  # fmt: skip
    interval = average["seeds_interval"]
    note = f"{number(interval[0])} to {number(interval[1])} over seeds" if interval else ""
    content: list[Part] = [
        Facts([(f"Average of {len(average['tasks'])} tasks{average_mark(average, found['tasks'])}",
                Cell(number(average["mean"]), note=note))], wide=True),
        Table("Validation scores in percent", columns, rows),
        Figure("Means, with 95% intervals over rows",
               kit.charts.dots(dots, "score (%)", "task", low="low", high="high")),
        *(Text(note, "error" if " failed: " in note else "note") for note in notes(found["tasks"])),
    ]  # fmt: skip
    return Section("Results", content)


def _seeds(found: Mapping[str, Any]) -> Section:
    rows = [
        {
            "run": f"{task['task']} {metric_name(metric)}",
            "score (%)": 100 * value,
            "seed": str(seed),
        }
        for task in found["tasks"]
        for metric in task["metrics"]
        for seed, value in metric["values"].items()
    ]
    return Section(
        "Each seed", [Figure("Scores of single runs", kit.charts.dots(rows, "score (%)", "run"))]
    )


def _published(found: Mapping[str, Any]) -> Section:
    names = [task["task"] for task in found["tasks"]]
    rows = [["This suite", *map(figures, found["tasks"]), ""]]
    for reference in found["references"]:
        scores = ["/".join(f"{v:g}" for v in reference["scores"].get(name, ())) for name in names]
        rows.append([reference["model"], *scores, reference["source"]])
    return Section(
        "Compared with published results",
        [Table("Validation scores", ["Model", *names, "Source"], rows)],
    )


def _recipes(found: Mapping[str, Any]) -> Section:
    keys = {"learning_rate": "Learning rate", "num_train_epochs": "Epochs", "train_batch_size":
            "Batch size", "max_steps": "Maximum steps", "max_length": "Maximum tokens", "warm_start":
            "Warm start"}  # fmt: skip
    rows = [
        [task["task"], *(task["recipe"][key] for key in keys), task["recipe"]["source"]]
        for task in found["tasks"]
    ]
    return Section(
        "Recipes",
        [Table("Recipe of each task", ["Task", *keys.values(), "Source"], rows)],
        folded=True,
    )
