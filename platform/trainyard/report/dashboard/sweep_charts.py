"""The charts of a sweep: how trials learned, when they ended, and what their scores go with."""

import math
from typing import Any

from trainyard.report.dashboard.axes import Axis, axis, label
from trainyard.report.dashboard.records import Run
from trainyard.report.dashboard.sweeps import Sweep
from trainyard.report.kit import Status, charts
from trainyard.storage import mapping

FIFTHS = ("worst", "2nd", "3rd", "4th", "best")
ENDS: tuple[Status, ...] = (
    "waiting", "running", "finished", "stopped", "pruned", "diverged", "failed"
)  # fmt: skip

FIFTH = charts.category(
    "fifth", title="fifths by score", sort=list(FIFTHS),
    scale={"domain": list(FIFTHS), "range": list(charts.LEVELS)},
)  # fmt: skip
FOUR = {**charts.quantity("score"), "format": ".4f"}
ALL = charts.category("hyperparameters")
HALO: tuple[dict[str, Any], ...] = ({"stroke": "var(--sheet)", "strokeWidth": 4}, {})
"""Text drawn twice, first as a rim that keeps it legible over lines."""
LOST = {"type": "line", "strokeDash": [4, 3], "strokeWidth": 1.4, "color": "var(--diverged)"}
OVER = {"name": "over", "select": {"type": "point", "on": "pointerover", "fields": ["trial"]}}


def ranked(sweep: Sweep) -> list[tuple[Run, float, str]]:
    """(trial, score, fifth) of the trials that have a score, worst first: the best is drawn last.

    Those that diverged have none, whatever they had before.
    """
    scored = [
        (trial, trial.best.score)
        for trial in sweep.trials
        if trial.best is not None and math.isfinite(trial.best.score) and trial.status != "diverged"
    ]
    scored.sort(key=lambda pair: pair[1])
    last = max(len(scored) - 1, 1)
    return [(t, s, FIFTHS[min(5 * i // (last + 1), 4) if len(scored) > 1 else 4])
            for i, (t, s) in enumerate(scored)]  # fmt: skip


def hyperparameters(trial: Run) -> str:
    """All of a trial's hyperparameters, in a line."""
    return ", ".join(f"{name} {label(value)}" for name, value in trial.hyperparameters.items())


def axes(sweep: Sweep) -> list[Axis]:
    """One for each hyperparameter that the trials have values of."""
    space = mapping(sweep.record.get("space"))
    found = []
    for name in sweep.fields:
        values = [t.hyperparameters[name] for t in sweep.trials if name in t.hyperparameters]
        if values:
            found.append(axis(name, space.get(name), values))
    return found


def learning_curves(sweep: Sweep) -> dict[str, Any]:
    """Every trial's score by step, the best fifth on top, with a mark where the scheduler stopped.

    Dashed lines diverged.
    """
    rows = [row for trial, _, fifth in ranked(sweep) for row in _evaluated(trial, fifth)]
    lost = [t for t in sweep.trials if t.status == "diverged"]
    dashed = [row for trial in lost for row in _evaluated(trial, "diverged")]
    pruned = {trial.name for trial in sweep.trials if trial.status == "pruned"}
    last = {row["trial"]: row for row in rows}
    ends = [
        {**row, "end": "stopped by the scheduler"}
        for row in last.values()
        if row["trial"] in pruned
    ]
    tooltip = [charts.category("trial"), FOUR, charts.quantity("step"), ALL]
    curves = {
        "data": charts.values(rows),
        "params": [OVER],
        "mark": {"type": "line", "point": {"size": 16, "filled": True}, "strokeJoin": "round"},
        "encoding": {
            "detail": charts.category("trial"), "color": FIFTH, "strokeWidth": _thicker(1.6),
            "tooltip": tooltip,
        },
    }  # fmt: skip
    marks = {
        "data": charts.values(ends),
        "mark": {
            "type": "point", "filled": True, "size": 110, "color": "var(--pruned)",
            "stroke": "var(--sheet)", "strokeWidth": 1,
        },
        "encoding": {
            "shape": {"value": "triangle-down"},
            "tooltip": [charts.category("end"), *tooltip],
        },
    }  # fmt: skip
    lost_curves = {
        "data": charts.values(dashed),
        "mark": LOST,
        "encoding": {"detail": charts.category("trial"), "tooltip": tooltip},
    }
    chart = {
        "encoding": {
            "x": charts.quantity("step", "optimizer step"),
            "y": {**charts.quantity("score", sweep.metric), "scale": {"zero": False}},
        },
        "layer": [*([lost_curves] if dashed else []), curves, *([marks] if ends else [])],
    }
    return charts.specification(chart, 340)


def timeline(sweep: Sweep) -> dict[str, Any]:
    """When each trial ran and how it ended."""
    begun = [(t, t.started) for t in sweep.trials if t.started is not None]
    first = min((started for _, started in begun), default=0.0)
    latest = max((t.ended or started for t, started in begun), default=0.0)
    rows = [
        {"trial": t.name, "from": (started - first) / 60,
         "to": (max(t.ended or latest, started) - first) / 60, "state": t.status,
         "steps": f"{t.steps or 0} of {t.last_step or '?'}", "hyperparameters": hyperparameters(t)}
        for t, started in begun
    ]  # fmt: skip
    few = len(rows) <= 40
    seen = [state for state in ENDS if any(row["state"] == state for row in rows)]
    colors = {"domain": seen, "range": [f"var(--{state})" for state in seen]}
    chart = {
        "data": charts.values(rows),
        "mark": {"type": "bar", "cornerRadius": 1, "minBandSize": 2},
        "encoding": {
            "x": charts.quantity("from", "minutes since the first trial began"),
            "x2": {"field": "to"},
            "y": {
                **charts.category("trial", title=None if few else "trials", sort=None),
                "axis": {"labels": few, "ticks": False, "domain": False},
            },
            "color": charts.category("state", title=None, scale=colors),
            "tooltip": [*map(charts.category, ("trial", "state", "steps")), ALL],
        },
    }
    return charts.specification(chart, (16 if few else 4) * max(len(rows), 1))


def parallel_coordinates(sweep: Sweep) -> dict[str, Any]:
    """A line through the hyperparameters and the score of each trial; dashed ones diverged."""
    scored = ranked(sweep)
    results = axis(sweep.metric or "score", "uniform", [score for _, score, _ in scored])
    known = [*axes(sweep), results]
    rows = [_through(known, trial, score, fifth) for trial, score, fifth in scored]
    lost = [trial for trial in sweep.trials if trial.status == "diverged"]
    dashed = [_through(known, trial, None, "diverged") for trial in lost]
    ticks = [{"axis": a.name, "at": at, "label": text} for a in known for at, text in a.ticks()]
    lines: dict[str, Any] = {
        "detail": charts.category("trial"),
        "tooltip": [charts.category("trial"), FOUR, ALL],
    }
    mark: dict[str, Any] = {
        "type": "text",
        "align": "left",
        "dx": 5,
        "fontSize": 11,
        "color": "var(--muted)",
    }
    lost_lines = {
        "data": charts.values([point for line in dashed for point in line]),
        "mark": LOST,
        "encoding": lines,
    }
    chart: dict[str, Any] = {
        "encoding": {
            "x": {
                **charts.category("axis", title=None, sort=[a.name for a in known]),
                "scale": {"type": "point", "padding": 0.35},
                "axis": {
                    "orient": "top", "labelAngle": 0, "labelOverlap": False, "labelLimit": 190,
                    "ticks": False, "domain": False, "grid": True, "labelColor": "var(--ink)",
                },
            },
            "y": {**charts.quantity("at"), "axis": None, "scale": {"domain": [-0.03, 1.03]}},
        },
        "layer": [
            *([lost_lines] if dashed else []),
            {
                "data": charts.values([point for line in rows for point in line]),
                "params": [OVER],
                "mark": {"type": "line", "opacity": 0.85},
                "encoding": {**lines, "color": FIFTH, "strokeWidth": _thicker(1.4)},
            },
            *(
                {"data": charts.values(ticks), "mark": {**mark, **halo},
                 "encoding": {"text": charts.category("label")}}
                for halo in HALO
            ),
        ],
    }  # fmt: skip
    return charts.specification(chart, 340)


def score_against(sweep: Sweep, across: Axis) -> dict[str, Any]:
    """The trials' scores against one hyperparameter; hollow ones were not trained to their end."""
    rows = [
        {"trial": trial.name, "score": score, "hyperparameters": hyperparameters(trial),
         "x": label(value) if across.kind == "listed" else value, "fifth": fifth,
         "state": trial.status}
        for trial, score, fifth in ranked(sweep)
        if across.position(value := trial.hyperparameters.get(across.name)) is not None
    ]  # fmt: skip
    if across.kind == "listed":
        x = charts.category("x", title=None, sort=list(across.values), axis={"labelAngle": 0})
    else:
        scale = {"type": across.kind, "nice": False, "padding": 8}
        x = {
            **charts.category("x", title=None),
            "type": "quantitative",
            "scale": scale if across.kind == "log" else {**scale, "zero": False},
            "axis": {"tickCount": 4, "format": ".0e" if 0 < across.high < 0.01 else "~g"},
        }
    color = {**FIFTH, "legend": None}
    fill = {
        "condition": {**color, "test": "datum.state === 'finished'"},
        "value": "transparent",
    }
    chart = {
        "data": charts.values(rows),
        "mark": {"type": "point", "size": 45, "strokeWidth": 1.6},
        "encoding": {
            "x": x,
            "y": {**charts.quantity("score", sweep.metric), "scale": {"zero": False}},
            "stroke": color,
            "fill": fill,
            "tooltip": [charts.category("trial"), FOUR, charts.category("state"), ALL],
        },
    }
    return charts.specification(chart, 200)


def _evaluated(trial: Run, fifth: str) -> list[dict[str, Any]]:
    """The points of a trial's learning curve."""
    return [
        {"trial": trial.name, "step": e.step, "score": e.score, "fifth": fifth,
         "hyperparameters": hyperparameters(trial)}
        for e in trial.evaluations
        if math.isfinite(e.score)
    ]  # fmt: skip


def _through(
    known: list[Axis], trial: Run, score: float | None, fifth: str
) -> list[dict[str, Any]]:
    """The points of a trial's line, one on each axis that it has a value for."""
    found = []
    for column in known:
        value = score if column is known[-1] else trial.hyperparameters.get(column.name)
        if (place := column.position(value)) is not None:
            found.append({"trial": trial.name, "axis": column.name, "at": place, "fifth": fifth,
                          "score": score, "hyperparameters": hyperparameters(trial)})  # fmt: skip
    return found


def _thicker(width: float) -> dict[str, Any]:
    """The line under the pointer stands out."""
    return {"condition": {"param": "over", "empty": False, "value": 4}, "value": width}
