"""Index of runs, sweeps and reports below the storage path, and the comparison of runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from trainyard.metrics import METRICS, metric_label
from trainyard.report import kit
from trainyard.report.dashboard.records import (  # fmt: skip
    Job,
    Report,
    Run,
    Sweep,
    Yard,
    pair,
    short_name,
    without_secrets,
)
from trainyard.report.dashboard.run_page import (  # fmt: skip
    interval,
    kind_of_rows,
    label,
    loss_rows,
    score_cell,
    steps_cell,
    time_cell,
)
from trainyard.report.kit import (  # fmt: skip
    Cell,
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    Value,
    moment_cell,
    number,
    number_cell,
    status_cell,
)
from trainyard.storage import mapping, real, words

Entry = TypeVar("Entry", bound=Run | Sweep | Report)
Running = TypeVar("Running", bound=Run | Sweep)
Link = Callable[[Run | Sweep | Report], str | None]
"""Returns the URL of a page, or None in a file that is exported."""
Columns = dict[str, Callable[[Entry], Cell | Value]]
"""Name of a column -> function from an entry to its cell."""

MOST_COMPARED = 7
"""Maximum runs on one page of comparison: a chart has seven colors."""


def sections(yard: Yard, link: Link, compare: str) -> list[Section]:
    """Return counts, sweeps, runs and reports, newest first.

    Args:
        yard: Runs, sweeps and reports below the storage path.
        link: Returns the URL of an entry's page.
        compare: URL of the page that compares runs; empty for none.
    """
    everything: list[Run | Sweep] = [*yard.sweeps.values(), *yard.runs.values()]
    states = [found.status for found in everything]
    counts = {name: states.count(name) for name in ("running", "finished", "stopped")}
    counts["failed"] = states.count("failed") + states.count("diverged")
    now = Facts([(name.capitalize(), number(count)) for name, count in counts.items()], wide=True)
    tags = any(run.tags for run in yard.runs.values())
    runs = {name: column for name, column in RUNS.items() if tags or name != "Tags"}
    reports = sorted(yard.reports.values(), key=lambda report: (-(report.written or 0), report.key))
    tables = {
        "Sweeps": Table(
            "Searches for hyperparameters",
            ["Sweep", *SWEEPS],
            _rows(_newest_first(yard.sweeps), SWEEPS, link),
            empty="None yet: trainyard tune starts one.",
            order="-Started",
            choices=CHOICES,
        ),
        "Runs": Table(
            "Runs outside sweeps",
            ["Run", *runs],
            _rows(_newest_first(yard.runs), runs, link),
            empty="None yet: trainyard train starts one.",
            order="-Started",
            choices=CHOICES,
            select=compare,
            most=MOST_COMPARED,
        ),
        "Reports": Table(
            "Evaluations, data examinations and GLUE suites",
            ["Report", *REPORTS],
            _rows(reports, REPORTS, link),
            empty="None yet: trainyard eval and trainyard data-doctor write them.",
            order="-Written",
            choices=CHOICES,
        ),
    }
    shown = [Section("Now", [now]), *(Section(title, [table]) for title, table in tables.items())]
    keys = [found.metric for found in everything]
    keys += [words(report.record.get("score_metric") or "") for report in reports]
    titles = [(key, METRICS[key].title) for key in sorted({*keys}) if metric_label(key) != key]
    return [*shown, Section("Metrics", [Facts(titles)])] if titles else shown


def _newest_first(found: Mapping[str, Running]) -> list[Running]:
    return sorted(found.values(), key=lambda job: (-(job.started or 0.0), job.key))


def _rows(
    entries: Sequence[Entry], columns: Columns[Entry], link: Link
) -> list[list[Cell | Value]]:
    return [
        [Cell(entry.key, href=link(entry)), *(value(entry) for value in columns.values())]
        for entry in entries
    ]


def chosen_score(sweep: Sweep) -> Cell:
    """Return the cell of the score of a sweep's result; a dash before the first score.

    It is the score of the best trial, or of the default recipe if the sweep kept it.
    """
    corrected = real(sweep.default.get("corrected"))
    score = real(sweep.default.get("mean")) if corrected is None else corrected
    if sweep.keeps_default and score is not None:
        return Cell(f"{score:.4f}", score, interval(*pair(sweep.default.get("interval"))))
    return score_cell(sweep.best) if sweep.best else Cell("–", math.nan)


def _state(job: Job) -> Cell:
    return status_cell(job.status)


def _started(job: Job) -> Cell:
    return moment_cell(job.started)


def _ended_trials(sweep: Sweep) -> Cell:
    ended = sum(trial.has_ended for trial in sweep.trials)
    return number_cell(ended, f"{ended} of {sweep.num_trials}")


def _learning_rate(run: Run) -> Cell:
    rate = real(run.config.get("learning_rate"))
    return number_cell(rate, label(rate))


def _reported_data(report: Report) -> str:
    """Return the name of the examined data: as recorded, else the task; the tasks of a suite."""
    record = report.record
    if isinstance(tasks := record.get("tasks"), list):
        return ", ".join(words(mapping(task).get("task")) for task in tasks)
    task = record.get("task")  # the only record of own data in older releases
    return words(record.get("data_name") or ("own data" if task == "own" else task))


CHOICES = ("State", "Kind", "Data set", "Model", "Tags")
"""Columns by which the reader can filter the tables."""
SWEEPS: Columns[Sweep] = {
    "State": _state,
    "Data set": lambda sweep: sweep.data or "–",
    "Model": lambda sweep: sweep.model or "–",
    "Metric": lambda sweep: sweep.metric or "–",
    "Best": chosen_score,
    "Trials": _ended_trials,
    "Verdict": lambda sweep: words(
        sweep.record.get("verdict") or ("withheld" if sweep.confirmation else None)
    ).capitalize(),
    "Started": _started,
    "Time": lambda sweep: time_cell(sweep.seconds),
}
RUNS: Columns[Run] = {
    "State": _state,
    "Data set": lambda run: run.data or "–",
    "Model": lambda run: run.model or "–",
    "Metric": lambda run: run.metric or "–",
    "Best": score_cell,
    "Learning rate": _learning_rate,
    "Tags": lambda run: ", ".join(run.tags) or "–",
    "Steps": steps_cell,
    "Started": _started,
    "Time": lambda run: time_cell(run.seconds),
}
REPORTS: Columns[Report] = {
    "Kind": lambda report: report.kind,
    "Data set": _reported_data,
    "Model": lambda report: short_name(report.record.get("model")) or "–",
    "Result": lambda report: report.result,
    "Written": lambda report: moment_cell(report.written),
}


def comparison(runs: Sequence[Run], link: Link) -> list[Section]:
    """Return the results, overlaid curves and config differences of several runs."""
    columns = {name: column for name, column in RUNS.items() if name != "Tags"}
    results = Table("Results", ["Run", *columns], _rows(runs, columns, link))
    scores = [
        {"step": e.step, "score": e.score, "run": run.key} for run in runs for e in run.evaluations
    ]
    losses: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for row in loss_rows(run):
            losses.setdefault(row["rows"], []).append({**row, "run": run.key})
    keys = [run.key for run in runs]
    metrics = list(dict.fromkeys(run.metric for run in runs if run.metric))
    lines = kit.charts.lines
    curves: list[Part] = []
    if scores:
        chart = lines(scores, "step", "score", "run", domain=keys, points=True)
        name = " or ".join(map(metric_label, metrics)) or "Score"
        curves.append(Figure(f"Evaluation: {name}", chart))
    curves += [
        Figure(f"{kind_of_rows(name)} loss", lines(rows, "step", "loss", "run", domain=keys))
        for name, rows in losses.items()
    ]
    return [
        Section("Results", [results]),
        Section("Curves", curves or [Text("No step has been logged yet.", "note")], grid=True),
        Section("Config differences", [_differences(runs)]),
    ]


def _differences(runs: Sequence[Run]) -> Part:
    fields = dict.fromkeys(field for run in runs for field in run.config)
    rows: list[list[Cell | Value]] = []
    for field in fields:
        values = [run.config.get(field) for run in runs]
        different = len({words(value) for value in values})
        if different > 1:
            shown = [*map(_setting, values)]
            if len(set(shown)) < different:
                shown = [*map(words, values)]
            rows.append([field, *(Cell(without_secrets(text)) for text in shown)])
    if not rows:
        return Text("The configs of these runs are equal.", "note")
    return Table("Fields with different values", ["Field", *(run.key for run in runs)], rows)


def _setting(value: Any) -> str:
    """Format a value of a config: fractions with up to six digits, lists and mappings as words."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(each)}" for name, each in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_setting, value)) or "–"
    return words(value)
