"""Page of one run: its score, curves, use of time, config and versions."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from trainyard.config import TrainConfig
from trainyard.metrics import metric_label
from trainyard.report import kit
from trainyard.report.dashboard.records import Run, Sweep, pair, without_secrets
from trainyard.report.kit import (  # fmt: skip
    Cell,
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    Value,
    number,
    number_cell,
    percent,
)
from trainyard.storage import ACCOUNTS, mapping, real, words
from trainyard.summary import duration, short, span_words

NEVER_EVALUATED = "No step has been logged yet."
LOG_LINES = 200
"""Maximum lines of a run's log on its page."""
SERVER = "http://127.0.0.1:8000"
"""Address at which `trainyard serve` answers by default; only browsers on its machine reach it."""


def label(value: Any) -> str:
    """Format a hyperparameter; fractions get up to three digits, see `number`."""
    found = real(value)
    if found is None:
        return words(value)
    shown = number(found, 3)
    return shown.rstrip("0").rstrip(".") if "." in shown and "e" not in shown else shown


def interval(low: float | None, high: float | None) -> str:
    """Format an interval by `span_words`; empty if an end is None."""
    return "" if low is None or high is None else span_words((low, high))


def score_cell(run: Run) -> Cell:
    """Return the cell of the best score so far, with its interval; diverged runs sort last."""
    lost = run.status == "diverged"
    if run.best is None:
        return Cell("NaN" if lost else "–", sort=math.nan)
    if lost:
        return Cell(f"{run.best.score:.4f}", math.nan, "before it diverged")
    # Without the reason for having no interval, which is too wide for a cell.
    note = interval(run.best.low, run.best.high).partition(":")[0]
    return Cell(f"{run.best.score:.4f}", run.best.score, note)


def steps_cell(run: Run) -> Cell:
    """Return the cell of a run's steps; a running run has a bar for its progress."""
    steps, last = run.steps, run.last_step
    of_all = f" of {number(last)}" if last and last != steps else ""
    bar = share(steps, last) if run.status == "running" else None
    return dataclasses.replace(number_cell(steps, f"{number(steps)}{of_all}"), share=bar)


def time_cell(seconds: float | None) -> Cell:
    """Return the cell of a duration in seconds; a dash for None."""
    return number_cell(seconds, duration(seconds))


def share(part: float | None, whole: float | None) -> float | None:
    """Return the ratio of `part` to `whole`, limited to 0 to 1; None if either is unknown."""
    return min(max(part / whole, 0.0), 1.0) if part is not None and whole else None


def problems(found: Run | Sweep) -> list[Part]:
    """Return sentences about damaged files, the reason for the end, and the recorded warnings."""
    parts: list[Part] = [Text(f"{problem}.", "error") for problem in found.problems]
    if found.reason:
        parts.append(Text(found.reason, "error" if found.status == "failed" else "warning"))
    listed = found.record.get("warnings")
    for warning in listed if isinstance(listed, list) else ():
        sentence = without_secrets(words(warning)).removeprefix("warning: ")
        parts.append(Text(f"{sentence[:1].upper()}{sentence[1:]}.", "warning"))
    return parts


def config_section(config: Mapping[str, Any]) -> Section:
    """Return the section with the config of a run or sweep, without secrets."""
    own = config.get("train_file") or config.get("dataset_name")  # the task is unused with own data
    facts = [
        (name, without_secrets(words(value)))
        for name, value in config.items()
        if not (own and name == "task")
    ]
    content = Facts(facts) if facts else Text("No config has been written yet.", "note")
    return Section("Config", [content], folded=True)


def sections(run: Run) -> list[Section]:
    """Return the content of a run's page, the result first."""
    found = [
        Section("Result", _result(run)),
        Section("Curves", _curves(run), grid=True),
        Section("Where the time went", _time(run)),
    ]
    if usage := _usage(run):
        found.insert(2, Section("Resources", usage, grid=True))
    if log := run.text("log.txt"):
        tail = "\n".join(log.splitlines()[-LOG_LINES:])
        found.append(Section("Log", [Text(tail, "code")], folded=run.status != "running"))
    if error := run.text("error.txt"):
        folded = run.status != "failed"
        found.insert(1, Section("Log of the failure", [Text(error, "code")], folded=folded))
    if command := train_command(run.config):
        note = Text(
            "Flags that differ from their defaults. It resumes or returns this run.", "note"
        )
        found.append(Section("Command", [note, Text(command, "command")]))
    if run.result.get("model"):
        found.append(Section("Model", _model(run)))
    if card := run.text("model/README.md"):
        found.append(Section("Model card", [Text(card, "code")], folded=True))
    return [*found, config_section(run.config), Section("Versions", [_versions(run)], folded=True)]


def _result(run: Run) -> list[Part]:
    result = run.result
    padding = real(result.get("padding_efficiency"))
    best_step = real(result.get("best_step")) or (run.best.step if run.best else None)
    facts: list[tuple[str, Cell | Value]] = [
        (f"Best {metric_label(run.metric or 'score')}", score_cell(run)),
        ("Best step", number(best_step)),
        ("Steps", dataclasses.replace(steps_cell(run), share=None)),
        ("Samples per second", number(run.samples_per_second, 3)),
        ("Padding efficiency", percent(padding, 1)),
        ("Time", duration(run.seconds)),
    ]
    if run.seconds_left is not None:
        facts.append(("Time left", Cell(duration(run.seconds_left), note="estimated")))
    parts = [
        *problems(run),
        Facts(facts, wide=True),
    ]
    intervals = mapping(result.get("intervals"))
    rows: list[list[Cell | Value]] = [
        [
            words(split),
            metric_label(words(name)),
            _measured(value, mapping(intervals.get(split)).get(name)),
        ]
        for split, metrics in mapping(result.get("metrics")).items()
        for name, value in mapping(metrics).items()
    ]
    if rows:
        caption = "Metrics of the best checkpoint, with 95 % intervals over rows"
        parts.append(Table(caption, ["Split", "Metric", "Value"], rows))
    if run.hyperparameters:
        parts.append(Facts([(name, label(value)) for name, value in run.hyperparameters.items()]))
    truncated = {k: v for k, v in mapping(result.get("truncated_rows")).items() if real(v)}
    if truncated:
        counts = ", ".join(
            f"{number(real(count))} of {split}" for split, count in truncated.items()
        )
        parts.append(Text(f"Rows truncated to the maximum length: {counts}.", "note"))
    return parts


def _model(run: Run) -> list[Part]:
    path = short(words(run.result["model"]))
    facts: list[tuple[str, Cell | Value]] = [("Folder", path)]
    if run.text("model/README.md"):
        facts.append(("Model card", Cell("On this page", href="#model-card")))
    page = f"{SERVER}/playground#{quote(run.name, safe='')}"
    facts.append(("Playground", Cell(page, href=page, note="while the command below runs")))
    command = shlex.join(["trainyard", "serve", "--model-name-or-path", short(str(run.path))])
    note = (
        "This command serves the model to browsers on its own machine. From another machine, forward "
        f"port {SERVER.rpartition(':')[2]} first."
    )
    return [Facts(facts), Text(note, "note"), Text(command, "command")]


def _measured(value: Any, span: Any) -> Cell:
    found = real(value)
    return number_cell(found, None if found is None else f"{found:.4f}", interval(*pair(span)))


def _curves(run: Run) -> list[Part]:
    training = [line for line in run.lines if real(line.get("loss")) is not None]
    scores = [
        {"step": line["step"], "series": f"{name} ({words(line['split'])})", "value": real(value)}
        for line in run.lines
        if "split" in line
        for name, value in mapping(line.get("metrics")).items()
    ]
    if not training and not scores:
        return [Text(NEVER_EVALUATED, "note")]
    parts: list[Part] = []
    lines = kit.charts.lines
    if scores:
        last = {row["series"]: row["value"] for row in scores}
        ends = ", ".join(f"{name} {number(value)}" for name, value in last.items())
        chart = lines(scores, "step", "value", "series", points=True)
        parts.append(Figure("Evaluation", chart, f"Metrics by step; the last: {ends}."))
    if losses := loss_rows(run):
        losses = [{**row, "rows": kind_of_rows(row["rows"])} for row in losses]
        kinds: dict[str, list[float]] = {}
        for row in losses:
            kinds.setdefault(row["rows"], []).append(row["loss"])
        chart = lines(losses, "step", "loss", "rows" if len(kinds) > 1 else None)
        name = "Training and validation loss" if len(kinds) > 1 else f"{next(iter(kinds))} loss"
        ends = ". ".join(
            f"{kind}: from {number(values[0])} to {number(values[-1])}"
            for kind, values in kinds.items()
        )
        parts.append(Figure(name, chart, f"{ends}."))
    if training:
        rates = [
            {"step": line["step"], "learning rate": real(line.get("learning_rate"))}
            for line in training
        ]
        chart = lines(rates, "step", "learning rate", y_format=".2~e")
        parts.append(Figure("Learning rate", chart, "Of the next step."))
    return parts


def kind_of_rows(rows: str) -> str:
    """Return the title of `rows` in `loss_rows`, such as "Validation matched"."""
    return rows.replace("_", " ").capitalize()


def loss_rows(run: Run) -> list[dict[str, Any]]:
    """Return the losses by step; `rows` is "training" or the name of the evaluated split.

    Evaluations of older versions have no loss.
    """
    found = []
    for line in run.lines:
        name = words(line["split"]) if "split" in line else "training"
        loss = real(line.get("eval_loss") if "split" in line else line.get("loss"))
        if loss is not None:
            found.append({"step": line["step"], "loss": loss, "rows": name})
    return found


USAGE = {
    "Processor and GPU in use": ("percent", 1, {"cpu_percent": "CPU", "gpu_percent": "GPU"}),
    "Memory in use": (
        "GiB", 2**30,
        {"memory_bytes": "Node", "worker_memory_bytes": "Worker", "gpu_memory_bytes": "GPU"},
    ),
}  # fmt: skip
"""Caption of a figure -> unit, divisor, and title of each column of usage.jsonl."""


def _usage(run: Run) -> list[Part]:
    parts: list[Part] = []
    for caption, (unit, divisor, columns) in USAGE.items():
        rows = [
            {"minutes": row["seconds"] / 60, unit: value / divisor, "of": title}
            for row in run.usage
            for column, title in columns.items()
            if (value := real(row.get(column))) is not None
        ]
        if rows:
            chart = kit.charts.lines(rows, "minutes", unit, "of")
            about = "Of the node of the first worker, over the training time of all attempts."
            parts.append(Figure(caption, chart, about))
    return parts


def _time(run: Run) -> list[Part]:
    if not run.ledger:
        return [Text("This run has not recorded its time.", "note")]
    total = sum(run.ledger.values())
    rows: list[list[Cell | Value]] = [
        [ACCOUNTS[account].capitalize(), time_cell(seconds),
         Cell(percent(share(seconds, total), 1), seconds, share=share(seconds, total))]
        for account, seconds in run.ledger.items()
    ]  # fmt: skip
    caption = "Time by account, over all attempts at this run"
    return [Table(caption, ["Account", "Time", "Share"], rows)]


def _versions(run: Run) -> Facts:
    found = mapping(run.record.get("versions"))
    data = words(run.record.get("data_fingerprint"))
    return Facts([*((name, words(value)) for name, value in found.items()), ("data", data)])


def train_command(config: Mapping[str, Any]) -> str:
    """Return the command that trains a config; empty if it has no task and no training file."""
    if not (config.get("task") or config.get("train_file")):
        return ""
    parts = ["trainyard", "train"]
    for name, value in TrainConfig.non_defaults(config).items():
        flag = f"--{name.replace('_', '-')}"
        match value:
            case None:
                continue
            case bool():
                parts.append(flag if value else f"--no-{flag[2:]}")
            case dict():
                parts += [flag, *(words(part) for item in value.items() for part in item)]
            case list():
                parts += [flag, *map(words, value)]
            case _:
                parts += [flag, words(value)]
    return without_secrets(shlex.join(parts))
