"""The page of one run: its score, its curves, where its time went, what it was made of."""

import math
from typing import Any

from trainyard.report.dashboard.records import Run, pair, without_secrets
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    Value,
    charts,
    duration,
    number,
    per_cent,
)
from trainyard.storage import ACCOUNTS, mapping, real, words


def interval(low: float | None, high: float | None) -> str:
    """As in 0.850 to 0.905; empty when it is not known."""
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def score_cell(run: Run) -> Cell:
    """Best score so far, with its interval; one that diverged sorts last, whatever it had before."""
    lost = run.status == "diverged"
    if run.best is None:
        return Cell("NaN" if lost else "–", sort=math.nan)
    if lost:
        return Cell(f"{run.best.score:.4f}", math.nan, "before it diverged")
    return Cell(f"{run.best.score:.4f}", run.best.score, interval(run.best.low, run.best.high))


def share(part: float | None, whole: float | None) -> float | None:
    """0 to 1; None when it is not known."""
    return min(max(part / whole, 0.0), 1.0) if part is not None and whole else None


def sections(run: Run) -> list[Section]:
    """All that is known about a run, top down as people ask."""
    found = [
        Section("Result", _result(run)),
        Section("Curves", _curves(run), grid=True),
        Section("Where the time went", _time(run)),
        Section("Config", [_config(run)], folded=True),
        Section("Versions", [_versions(run)], folded=True),
    ]
    if error := run.error():
        found.insert(1, Section("Error", [Text(error, "code")], folded=run.status != "failed"))
    return found


def _result(run: Run) -> list[Any]:
    result, steps, last = run.result, run.steps, run.last_step
    speed = real(result.get("train_samples_per_second")) or real(
        run.progress.get("train_samples_per_second")
    )
    padding = real(result.get("padding_efficiency"))
    best_step = result.get("best_step") or (run.best.step if run.best else None)
    parts: list[Any] = [
        Text(f"{problem}.", "error") for problem in run.problems
    ]  # fmt: skip
    if run.reason:
        parts.append(Text(run.reason, "error" if run.status == "failed" else "warning"))
    score = score_cell(run)
    facts: list[tuple[str, Any]] = [
        (f"Best {run.metric or 'score'}", Cell(score.text, score.sort, score.note)),
        ("Best step", Cell(number(real(best_step)))),
        ("Steps", Cell(number(steps), note=f"of {number(last)}" if last and last != steps else "")),
        ("Samples per second", Cell(number(speed, 3))),
        ("Padding efficiency", Cell(per_cent(padding, 1))),
        ("Time", Cell(duration(run.seconds))),
    ]
    parts.append(Facts(facts, wide=True))
    splits = mapping(result.get("metrics"))
    rows: list[list[Cell | Value]] = [
        [
            words(split),
            words(name),
            _measured(value, mapping(result.get("intervals")).get(split), name),
        ]
        for split, metrics in splits.items()
        for name, value in mapping(metrics).items()
    ]
    if rows:
        parts.append(Table("Metrics of the best checkpoint, with 95 % intervals over rows",
                           ["Split", "Metric", "Value"], rows))  # fmt: skip
    if run.hyperparameters:
        parts.append(Facts([(name, words(value)) for name, value in run.hyperparameters.items()]))
    truncated = {k: v for k, v in mapping(result.get("truncated_rows")).items() if v}
    if truncated:
        cut = ", ".join(f"{words(count)} of {split}" for split, count in truncated.items())
        parts.append(Text(f"Rows cut to the maximal length: {cut}.", "note"))
    if result.get("model"):
        parts.append(Text(f"The model is in {words(result['model'])}", "note"))
    return parts


def _measured(value: Any, intervals: Any, name: str) -> Cell:
    found = real(value)
    if found is None:
        return Cell("–", math.nan)
    span = mapping(intervals).get(name)
    low, high = pair(span)
    return Cell(f"{found:.4f}", found, interval(low, high))


def _curves(run: Run) -> list[Any]:
    training = [line for line in run.lines if real(line.get("loss")) is not None]
    scores = [
        {"step": line["step"], "series": f"{name} ({words(line['split'])})", "value": real(value)}
        for line in run.lines
        if "split" in line
        for name, value in mapping(line.get("metrics")).items()
    ]
    if not training and not scores:
        return [Text("No step has been logged yet.", "note")]
    parts: list[Any] = []
    if scores:
        parts.append(Figure("Evaluation", charts.lines(scores, "step", "value", "series", points=True),
                            f"Each metric by step; the last {_last(scores)}."))  # fmt: skip
    if training:
        losses = [{"step": line["step"], "loss": real(line["loss"])} for line in training]
        rates = [
            {"step": line["step"], "learning rate": real(line.get("learning_rate"))}
            for line in training
        ]
        parts += [
            Figure("Training loss", charts.lines(losses, "step", "loss"),
                   f"From {number(losses[0]['loss'])} to {number(losses[-1]['loss'])}."),
            Figure("Learning rate", charts.lines(rates, "step", "learning rate", y_format=".2~e"),
                   "Of the next step."),
        ]  # fmt: skip
    return parts


def _last(scores: list[dict[str, Any]]) -> str:
    last = {row["series"]: row["value"] for row in scores}
    return ", ".join(f"{name} {number(value)}" for name, value in last.items())


def _time(run: Run) -> list[Any]:
    if not run.ledger:
        return [Text("This run has not recorded its time.", "note")]
    total = sum(run.ledger.values())
    rows: list[list[Cell | Value]] = [
        [ACCOUNTS[account].capitalize(), Cell(f"{seconds:,.1f} s", seconds),
         Cell(per_cent(seconds / total if total else None, 1), seconds, share=share(seconds, total))]
        for account, seconds in run.ledger.items()
    ]  # fmt: skip
    return [
        Table(
            "Seconds by account, over all attempts at this run", ["Account", "Time", "Share"], rows
        )
    ]


def _versions(run: Run) -> Facts:
    found = mapping(run.record.get("versions"))
    data = words(run.record.get("data_fingerprint"))
    return Facts([*((name, words(value)) for name, value in found.items()), ("data", data)])


def _config(run: Run) -> Facts | Text:
    if not run.config:
        return Text("No config has been written yet.", "note")
    return Facts([(name, without_secrets(words(value))) for name, value in run.config.items()])
