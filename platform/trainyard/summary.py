"""Readable summary of a finished job from its JSON result: scores, paths and next commands."""

import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def summary(result: Result) -> list[str]:
    """Return the summary lines of a job's JSON result; empty for a job not in SUMMARIES."""
    words = SUMMARIES.get(str(result.get("job")))
    return [] if words is None else list(words(result))


class Readable:
    """Base class of job results: prints the summary of `as_json` at a prompt or in a notebook."""

    def as_json(self) -> dict[str, Any]:
        """Return the job's result as a mapping that can be stored as JSON."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n".join(summary(self.as_json()))

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: first line of the summary, table of scores, model's path."""
        found = self.as_json()
        title, *_ = summary(found)
        intervals = found.get("intervals", {})
        rows = [
            (split, name, f"{value:.4f}", _ends(intervals.get(split, {}).get(name)))
            for split, metrics in found.get("metrics", {}).items()
            for name, value in metrics.items()
        ]
        cells = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
        head = "<tr><th>split</th><th>metric</th><th>value</th><th>95 % interval</th></tr>"
        table = f"<table>{head}{cells}</table>" if rows else ""
        return f"<p><b>{escape(title)}</b></p>{table}<p>{escape(short(str(found.get('model', ''))))}</p>"


def _ends(interval: Any) -> str:
    return span_words(interval, "{:.4f}".format) if interval else ""


def duration(seconds: float | None) -> str:
    """Format seconds: 0.8 s, 12 s, 3 min 04 s, 2 h 05 min.

    None, NaN and infinity become a dash.
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def short(path: str) -> str:
    """Make a path below the working directory relative to it; return other paths unchanged."""
    here = str(Path.cwd()) + os.sep
    return path.removeprefix(here)


def span_words(ends: Sequence[float], form: Callable[[float], str] = "{:.3f}".format) -> str:
    """Format the ends of an interval, such as "0.850 to 0.905".

    An interval of zero width is not shown, since it would suggest certainty. It only means that all
    resamples agree, for example because every row is right.
    """
    if ends[0] == ends[1]:
        return "no interval: all resamples of the rows agree"
    return f"{form(ends[0])} to {form(ends[1])}"


def interval_words(ends: Sequence[float]) -> str:
    """Format a 95 % interval with its name; see `span_words` for one of zero width."""
    words = span_words(ends)
    return words if ends[0] == ends[1] else f"95 % interval {words}"


def scores(result: Result) -> Iterator[str]:
    """Yield the headline score of each split, such as `validation accuracy 0.933 (872 rows)`.

    A training without test rows has only scores of the rows that chose its checkpoint, and says so.
    """
    rows = result.get("rows", {})
    biased = set(result.get("chosen_on", ())) == set(result["metrics"])
    for split, metrics in result["metrics"].items():
        name = result.get("score_metric") or next(iter(metrics))
        if name not in metrics:
            continue
        about = []
        if ends := result.get("intervals", {}).get(split, {}).get(name):
            about.append(interval_words(ends))
        if split in rows:
            about.append(f"{rows[split]} rows")
        if biased:
            about.append("which also chose the checkpoint")
        behind = f" ({', '.join(about)})" if about else ""
        yield f"{split} {name} {metrics[name]:.3f}{behind}"


def _next(**commands: str) -> Iterator[str]:
    width = max(map(len, commands))
    for name, command in commands.items():
        yield f"  {name:{width}}  {command}"


def _after_model(model: str) -> Iterator[str]:
    path = shlex.quote(short(model))
    yield from _next(
        model=short(model),
        eval=f"trainyard eval --model-name-or-path {path} --validation-file UNSEEN_ROWS",
        predict=f"trainyard predict --model-name-or-path {path} --input-file FILE "
        "--output-file answers.jsonl",
        serve=f"trainyard serve --model-name-or-path {path}",
        curves=_dashboard(short(str(Path(model).parents[1]))),
    )


def _dashboard(storage: str) -> str:
    return "trainyard dashboard" + (
        "" if storage == "runs" else f" --storage-path {shlex.quote(storage)}"
    )


def _train(result: Result) -> Iterator[str]:
    yield f"trained {result['run']}: {result['steps']} steps in {duration(result['seconds'])}"
    yield from (f"  {line}" for line in scores(result))
    if speed := result.get("train_samples_per_second"):
        share = (
            f", {100 * result['mfu']:.0f} % of the peak of its devices" if result.get("mfu") else ""
        )
        yield f"  {speed:.1f} samples/s in training{share}"
    yield from _after_model(result["model"])
    if "open" in result:  # the quickstart has already served the model and stopped the server
        run = shlex.quote(short(str(Path(result["model"]).parent)))
        yield (
            f"`trainyard serve --model-name-or-path {run}` starts the server again; then open "
            f"{result['open']} in a browser"
        )


def _eval(result: Result) -> Iterator[str]:
    yield f"evaluated {short(result['model'])} in {duration(result['seconds'])}"
    yield from (f"  {line}" for line in scores(result))
    for split, verdict in result.get("verdict", {}).items():
        yield f"  {split}, compared with {result['against']}: {verdict}"
    yield from _next(report=short(result["report"]))


def _tune(result: Result) -> Iterator[str]:
    best = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in result["best_hyperparameters"].items()
    )
    trials = sum(result["trials"].values())
    if result["interval"]:
        about = interval_words(result["interval"])
    else:  # not confirmed on other rows
        about = "on the rows that chose the trial" if trials > 1 else ""
    behind = f" ({about})" if about else ""
    yield f"tuned {result['run']} in {duration(result['seconds'])}: score {result['score']:.3f}{behind}"
    yield f"  best of {trials} trials: {best or 'the default recipe'}"
    if result["verdict"]:
        yield f"  compared with the default recipe: {result['verdict']}"
    yield from _next(config=f"trainyard train --config {shlex.quote(short(result['best_config']))}")
    yield from _after_model(result["model"])


def _predict(result: Result) -> Iterator[str]:
    errors = f", {result['errors']} of them with an error" if result.get("errors") else ""
    yield (
        f"predicted {result['rows']} rows{errors} in {duration(result['seconds'])}: "
        f"{short(result['output_file'])}"
    )


def _glue(result: Result) -> Iterator[str]:
    mean = (
        "not every task is finished" if result["score"] is None else f"{100 * result['score']:.1f}"
    )
    yield f"suite {result['run']} in {duration(result['seconds'])}; average: {mean}"
    yield from _next(
        table=short(result["table"]), curves=_dashboard(short(str(Path(result["table"]).parent)))
    )


def _engine(result: Result) -> Iterator[str]:
    yield (
        f"best engine here: {result['engine']} in {result['dtype']}, {result['speed']:.2f} times torch; "
        "serving with `engine: auto` uses it"
    )


def _data_doctor(result: Result) -> Iterator[str]:
    found = f"{len(result['severe'])} severe findings, {result['notices']} notices"
    yield f"examined {result['run']} in {duration(result['seconds'])}: {found}"
    yield from _next(report=short(result["report"]))


def _quoted(name: str) -> str:
    """Return a column's name, in quotes unless it is one word."""
    return name if name.isidentifier() else repr(name)


def _init(result: Result) -> Iterator[str]:
    columns = [result["text_column"], result["text_pair_column"], result["label_column"]]
    yield (
        f"wrote {result['config']}: columns {', '.join(map(_quoted, filter(None, columns)))}; "
        f"{result['rows']['train']} rows to train on"
    )
    kinds = {
        "single_label_classification": f"one of {len(result['labels'])} labels",
        "multi_label_classification": f"any of {len(result['labels'])} labels",
        "regression": "a number",
    }
    kind = result["problem_type"]
    others = " or ".join(name for name in kinds if name != kind)
    yield f"  each row has {kinds[kind]} ({kind}); to change it, set problem_type to {others}"
    yield from _next(train=f"trainyard train --config {shlex.quote(result['config'])}")


SUMMARIES: Mapping[str, Callable[[Result], Iterator[str]]] = {
    "init": _init,
    "train": _train,
    "eval": _eval,
    "tune": _tune,
    "predict": _predict,
    "glue": _glue,
    "engine": _engine,
    "doctor_data": _data_doctor,
}
"""Functions that yield the summary lines of a result, by its `job` field."""
