"""The charts of a sweep: how trials learned, when they ended, and what their scores go with."""

import math
from collections.abc import Mapping
from typing import Any

from trainyard.report.axes import Axis, axis, label
from trainyard.report.charts import LEVELS, Rows, specification
from trainyard.report.reader import mapping
from trainyard.report.records import Run
from trainyard.report.sweeps import Sweep

FIFTHS = ("worst fifth", "2nd", "3rd", "4th", "best fifth")
ENDS = ("waiting", "running", "finished", "stopped", "pruned", "diverged", "failed")


def ranked(sweep: Sweep) -> list[tuple[Run, float, str]]:
    """(trial, score, fifth) of the trials that have a score, worst first: the best is drawn last."""
    scored = [
        (trial, trial.best.score)
        for trial in sweep.trials
        if trial.best is not None and math.isfinite(trial.best.score)
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
    """Every trial's score by step, the best fifth on top, with a mark where the scheduler stopped."""
    import altair as alt

    rows = [
        {"trial": trial.name, "step": e.step, "score": e.score, "fifth": fifth,
         "values": hyperparameters(trial), "best": best}
        for trial, best, fifth in ranked(sweep)
        for e in trial.evaluations
        if math.isfinite(e.score)
    ]  # fmt: skip
    pruned = {trial.name for trial in sweep.trials if trial.status == "pruned"}
    last = {row["trial"]: row for row in rows}
    ends = [
        {**row, "end": "stopped by the scheduler"}
        for row in last.values()
        if row["trial"] in pruned
    ]
    over = alt.selection_point(on="pointerover", fields=["trial"], empty=False)
    score = alt.Y("score:Q", title=sweep.metric or "score", scale=alt.Scale(zero=False))
    curves = (
        _chart(rows)
        .mark_line(point={"size": 16, "filled": True}, strokeJoin="round")
        .encode(
            x=alt.X("step:Q", title="optimizer step"),
            y=score,
            detail="trial:N",
            color=_fifths(),
            strokeWidth=alt.condition(over, alt.value(4), alt.value(1.6)),
            tooltip=["trial:N", _four("score"), "step:Q", "values:N"],
        )
        .add_params(over)
    )
    marks = (
        _chart(ends)
        .mark_point(
            filled=True, size=60, color="var(--pruned)", stroke="var(--sheet)", strokeWidth=1
        )
        .encode(
            x="step:Q",
            y=score,
            shape=alt.Shape(
                "end:N", title=None, scale=alt.Scale(range=["triangle-down"]), sort=None
            ),
            tooltip=["trial:N", "end:N", _four("score"), "step:Q", "values:N"],
        )
    )
    return specification(alt.layer(curves, marks) if ends else curves, height=340)


def timeline(sweep: Sweep) -> dict[str, Any]:
    """When each trial ran and how it ended."""
    import altair as alt

    begun = [trial for trial in sweep.trials if trial.started is not None]
    first = min((t.started for t in begun if t.started), default=0.0)
    latest = max((t.ended or t.started or 0.0 for t in begun), default=0.0)
    rows = [
        {"trial": t.name, "order": i, "from": (t.started - first) / 60,
         "to": max(((t.ended or latest) - first) / 60, (t.started - first) / 60), "state": t.status,
         "steps": f"{t.steps or 0} of {t.last_step or '?'}", "values": hyperparameters(t)}
        for i, t in enumerate(begun)
        if t.started is not None
    ]  # fmt: skip
    names = len(rows) <= 40
    seen = [state for state in ENDS if any(row["state"] == state for row in rows)]
    chart = (
        _chart(rows)
        .mark_bar(cornerRadius=1, minBandSize=2)
        .encode(
            x=alt.X("from:Q", title="minutes since the first trial began"),
            x2="to:Q",
            y=alt.Y("trial:N", sort=alt.SortField("order"), title=None if names else "trials",
                    axis=alt.Axis(labels=names, ticks=False, domain=False)),
            color=alt.Color("state:N", title=None,
                            scale=alt.Scale(domain=seen, range=[f"var(--{s})" for s in seen])),
            tooltip=["trial:N", "state:N", "steps:N", "values:N"],
        )
    )  # fmt: skip
    return specification(chart, height={"step": 16 if names else 4})


def parallel_coordinates(sweep: Sweep) -> dict[str, Any]:
    """A line through the hyperparameters and the score of each trial; dashed ones diverged."""
    import altair as alt

    scored = {trial.name: (score, fifth) for trial, score, fifth in ranked(sweep)}
    known = axes(sweep)
    results = axis(sweep.metric or "score", "uniform", [score for score, _ in scored.values()])
    if scored:
        known.append(results)
    rows, order = [], [trial.name for trial, _, _ in ranked(sweep)]
    lost = [t.name for t in sweep.trials if t.status == "diverged" and t.name not in scored]
    by_name = {trial.name: trial for trial in sweep.trials}
    for name in [*lost, *order]:
        trial, (score, fifth) = by_name[name], scored.get(name, (None, None))
        for column in known:
            value = score if column is results else trial.hyperparameters.get(column.name)
            if (place := column.position(value)) is not None:
                rows.append({"trial": name, "axis": column.name, "at": place, "fifth": fifth,
                             "state": trial.status, "score": score,
                             "values": hyperparameters(trial)})  # fmt: skip
    ticks = [{"axis": a.name, "at": at, "label": text} for a in known for at, text in a.ticks()]
    names = alt.Axis(
        orient="top", labelAngle=0, labelOverlap=False, labelLimit=190, ticks=False, domain=False,
        grid=True, labelColor="var(--ink)",
    )  # fmt: skip
    places = alt.Scale(type="point", padding=0.35)
    across = alt.X("axis:N", sort=[a.name for a in known], title=None, scale=places, axis=names)
    up = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[-0.03, 1.03]))
    over = alt.selection_point(on="pointerover", fields=["trial"], empty=False)
    tooltip = ["trial:N", "state:N", _four("score"), "values:N"]
    encoding: dict[str, Any] = {"x": across, "y": up, "detail": "trial:N", "tooltip": tooltip}
    good = [row for row in rows if row["fifth"] is not None]
    bad = [row for row in rows if row["fifth"] is None]
    layers = [
        _chart(good)
        .mark_line(opacity=0.85)
        .encode(
            color=_fifths(),
            strokeWidth=alt.condition(over, alt.value(4), alt.value(1.4)),
            **encoding,
        )
        .add_params(over)
    ]
    if bad:
        layers.append(
            _chart(bad)
            .mark_line(strokeDash=[4, 3], color="var(--diverged)", strokeWidth=1.4)
            .encode(**encoding)
        )
    layers += [
        _chart(ticks)
        .mark_text(align="left", dx=5, fontSize=11, color="var(--muted)", **style)
        .encode(x=across, y=up, text="label:N")
        for style in ({"stroke": "var(--sheet)", "strokeWidth": 4}, {})
    ]
    return specification(alt.layer(*layers), height=340)


def score_against(sweep: Sweep, across: Axis) -> dict[str, Any]:
    """The trials' scores against one hyperparameter; hollow ones were stopped by the scheduler."""
    import altair as alt

    rows = [
        {"trial": trial.name, "score": score, "values": hyperparameters(trial),
         "x": label(value) if across.kind == "listed" else value, "fifth": fifth,
         "state": "full" if trial.status == "finished" else "not to its end"}
        for trial, score, fifth in ranked(sweep)
        if across.position(value := trial.hyperparameters.get(across.name)) is not None
    ]  # fmt: skip
    if across.kind == "listed":
        x = alt.X("x:N", sort=list(across.values), title=None, axis=alt.Axis(labelAngle=0))
    else:
        kind = "log" if across.kind == "log" else "linear"
        form = ".0e" if across.kind == "log" and across.high < 0.01 else "~g"
        x = alt.X("x:Q", title=None, scale=alt.Scale(type=kind, nice=False, padding=8,
                                                 **({} if kind == "log" else {"zero": False})),
                  axis=alt.Axis(tickCount=4, format=form))  # fmt: skip
    chart = (
        _chart(rows)
        .mark_point(size=45, strokeWidth=1.6)
        .encode(
            x=x,
            y=alt.Y("score:Q", title=sweep.metric or "score", scale=alt.Scale(zero=False)),
            stroke=_fifths("stroke", legend=False),
            fill=alt.condition(
                "datum.state == 'full'", _fifths("fill", legend=False), alt.value("transparent")
            ),
            tooltip=["trial:N", _four("score"), "state:N", "values:N"],
        )
    )  # fmt: skip
    return specification(chart, height=200)


def hyperparameter_table(sweep: Sweep) -> Mapping[str, str]:
    """The domain of each hyperparameter, as the sweep's space has it."""
    return {name: label(domain) for name, domain in mapping(sweep.record.get("space")).items()}


def _chart(rows: Rows) -> Any:
    import altair as alt

    return alt.Chart(alt.Data(values=list(rows)))


def _fifths(channel: str = "color", *, legend: bool = True) -> Any:
    import altair as alt

    kinds = {"color": alt.Color, "stroke": alt.Stroke, "fill": alt.Fill}
    return kinds[channel](
        "fifth:N",
        title="by score",
        sort=list(FIFTHS),
        scale=alt.Scale(domain=list(FIFTHS), range=list(LEVELS)),
        **({} if legend else {"legend": None}),
    )


def _four(field: str) -> Any:
    import altair as alt

    return alt.Tooltip(f"{field}:Q", format=".4f")
