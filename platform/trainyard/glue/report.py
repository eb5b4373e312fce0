"""Pages of a suite's table: the same sections as HTML and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.evaluation import one_answer_words
from trainyard.glue.table import versions_of_runs
from trainyard.report import kit
from trainyard.report.kit import Cell, Facts, Figure, Part, Section, Table, Text, number_cell

METHODS = (
    "Over seeds: Student's t over runs. Over rows: Wilson's interval of an accuracy, of other metrics "
    "the bootstrap's, and of several runs the mean of the ends. The validation split also chose the "
    "best checkpoint of each run. Samples per second are the median of the runs, seconds those of all "
    "runs together.",
    "In the average, a task of several metrics or splits counts by their mean; WNLI is left out.",
    "Published figures are as printed at their sources: one figure of a task with two metrics may be "
    "either of them.",
)
"""Notes about the methods, below the table."""
_RECIPE = {
    "learning_rate": "Learning rate", "num_train_epochs": "Epochs", "train_batch_size": "Batch size",
    "max_steps": "Maximum steps", "max_length": "Maximum tokens", "warm_start": "Warm start",
}  # fmt: skip
"""Field of a recipe -> title of its column."""


def page(found: Mapping[str, Any]) -> str:
    """Render the content of glue.json as an HTML page."""
    commits = found["versions"].get("commit", "")
    return kit.render(
        _title(found),
        _sections(found),
        subtitle="runs of several commits" if "," in commits else kit.commit(found["versions"]),
    )


def as_markdown(found: Mapping[str, Any]) -> str:
    """Render the content of glue.json as Markdown."""
    return kit.markdown(_title(found), _sections(found))


def _title(found: Mapping[str, Any]) -> str:
    return f"GLUE: {found['model']}"


def _sections(found: Mapping[str, Any]) -> list[Section]:
    return [
        Section("Results", _results(found)),
        Section("Each seed", [Figure("Scores of single runs", _dots_of_seeds(found["tasks"]))]),
        Section("Compared with published results", [_published(found)]),
        Section("Recipes", [_recipes(found["tasks"])], folded=True),
    ]


def _results(found: Mapping[str, Any]) -> list[Part]:
    rows, dots = [], []
    for task in found["tasks"]:
        name = task["task"] + _mark(task)
        if not task["metrics"]:
            failed = bool(task["failed"])
            why = Cell("Failed" if failed else "Not run yet", status="failed" if failed else None)
            rows.append([name, why, 0, *[None] * 7])
        for metric in task["metrics"]:
            low, high = metric["rows_interval"]
            title = _metric_name(metric)
            rows.append(
                [
                    name, title, len(task["seeds"]), _percent_cell(metric["mean"]),
                    _percent_cell(metric["sd"]), _span(metric["seeds_interval"]),
                    _span(metric["rows_interval"]), task["rows"].get("train"),
                    task["train_samples_per_second"], round(task["seconds"]),
                ]
            )  # fmt: skip
            dots.append(
                {"task": f"{name} {title}", "score (%)": 100 * metric["mean"], "low": 100 * low,
                 "high": 100 * high}
            )  # fmt: skip
    columns = [
        "Task", "Metric", "Seeds", "Mean", "SD", "95 % over seeds", "95 % over rows", "Training rows",
        "Samples/s", "Seconds",
    ]  # fmt: skip
    chart = kit.charts.dots(dots, "score (%)", "task", low="low", high="high")
    return [
        _average(found["average"], found["tasks"]),
        Table("Validation scores in percent", columns, rows),
        Figure("Means, with 95 % intervals over rows", chart),
        *(Text(note, "note") for note in (*METHODS, *_notes(found["tasks"]))),
        *(
            Text(f"{name} failed: {reason}", "error")
            for task in found["tasks"]
            for name, reason in task["failed"].items()
        ),
    ]


def _average(average: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> Part:
    if average["mean"] is None:
        return Text("No average: none of the tasks that count in it is finished.", "note")
    names = average["tasks"]
    sampled = "".join({_mark(task) for task in tasks if task["task"] in names})
    title = f"Average of {len(names)} task{'s' * (len(names) > 1)} ({', '.join(names)})"
    low, high = average["seeds_interval"] or (None, None)
    note = "" if low is None else f"95 % over seeds {low:.1f} to {high:.1f}"
    return Facts([(title, Cell(f"{average['mean']:.1f}{sampled}", note=note))], wide=True)


def _dots_of_seeds(tasks: Sequence[Mapping[str, Any]]) -> kit.charts.Specification:
    rows = [
        {
            "run": f"{task['task']} {_metric_name(metric)}",
            "score (%)": 100 * value,
            "seed": str(seed),
        }
        for task in tasks
        for metric in task["metrics"]
        for seed, value in metric["values"].items()
    ]
    return kit.charts.dots(rows, "score (%)", "run")


def _published(found: Mapping[str, Any]) -> Table:
    names = [task["task"] for task in found["tasks"]]
    ours = [
        "/".join(_percent_cell(metric["mean"]).text for metric in task["metrics"]) + _mark(task)
        for task in found["tasks"]
    ]
    rows = [["This suite", *ours, ""]]
    for reference in found["references"]:
        scores = ["/".join(f"{v:g}" for v in reference["scores"].get(name, ())) for name in names]
        rows.append([reference["model"], *scores, reference["source"]])
    return Table("Validation scores", ["Model", *names, "Source"], rows)


def _recipes(tasks: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [task["task"], *(task["recipe"][key] for key in _RECIPE), task["recipe"]["source"]]
        for task in tasks
    ]
    return Table("Recipe of each task", ["Task", *_RECIPE.values(), "Source"], rows)


def _notes(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for row in tasks:
        name, recipe = row["task"], row["recipe"]
        for split, official in row["samples_of"].items():
            found.append(
                f"* {name} {split} is a sample: {row['rows'][split]:,} of {official:,} rows, so the "
                "figure is not comparable with published ones."
            )
        if recipe["changed"]:
            fields = ", ".join(f"{field} {value}" for field, value in recipe["changed"].items())
            found.append(f"{name} was not trained by its own recipe, but with {fields}.")
        if recipe["warm_start"]:
            found.append(
                f"{name} starts from the {recipe['warm_start']} model of the same seed. Published "
                "figures start from the pretrained model unless their sources say so."
            )
        found += [f"{run}: {one_answer_words(said)}" for run, said in row["one_answer"].items()]
    for package, runs in versions_of_runs(tasks).items():
        if len(runs) > 1:
            listed = "; ".join(f"{version} ({', '.join(names)})" for version, names in runs.items())
            found.append(f"The runs were made with different versions of {package}: {listed}.")
    return found


def _mark(task: Mapping[str, Any]) -> str:
    return " *" if task["samples_of"] else ""


def _metric_name(metric: Mapping[str, Any]) -> str:
    split = metric["split"].removeprefix("validation").strip("_")
    return f"{metric['metric']} ({split})" if split else str(metric["metric"])


def _percent_cell(share: float | None) -> Cell:
    return number_cell(share, None if share is None else f"{100 * share:.1f}")


def _span(interval: Sequence[float] | None) -> str | None:
    return None if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
