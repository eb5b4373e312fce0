"""Charts of a sweep: learning curves, timeline, and scores against hyperparameters."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from trainyard.report.dashboard.records import Run, Sweep
from trainyard.report.dashboard.run_page import label
from trainyard.report.kit import Status, charts, number
from trainyard.storage import mapping, real, words

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FIFTHS = ("Worst", "2nd", "3rd", "4th", "Best")
"""Names of the fifths of the trials, ordered by score."""
ENDS: tuple[Status, ...] = (
    "waiting", "running", "finished", "stopped", "pruned", "diverged", "failed"
)  # fmt: skip
"""States of a trial, in the order of a legend."""
MIN_TRIALS = 10
"""Minimum trials for an estimate of importance."""
_ROUND = (1.0, 2.0, 5.0)

_SCORE = alt.Tooltip(**charts.quantity("score"), format=".4f")
_ALL = alt.Tooltip(**charts.category("hyperparameters"))
_TRIAL = alt.Tooltip(**charts.category("trial"))
_DETAIL = alt.Detail(**charts.category("trial"))
_FIFTH: dict[str, Any] = {
    "column": "fifth", "title": "Fifths by score", "sort": list(FIFTHS),
    "scale": alt.Scale(domain=list(FIFTHS), range=list(charts.LEVELS)),
}  # fmt: skip
_DASHED: dict[str, Any] = {"strokeDash": [4, 3], "strokeWidth": 1.4, "color": "var(--diverged)"}

Row = dict[str, Any]


def ranked(sweep: Sweep) -> list[tuple[Run, float, str]]:
    """Return (trial, score, fifth) of trials with a score, worst first: the best is drawn on top.

    Diverged trials are left out: their earlier scores do not count.
    """
    scored = [
        (trial, trial.best.score)
        for trial in sweep.trials
        if trial.best is not None and math.isfinite(trial.best.score) and trial.status != "diverged"
    ]
    scored.sort(key=lambda pair: pair[1])
    if len(scored) == 1:
        return [(*scored[0], FIFTHS[-1])]
    return [(t, s, FIFTHS[5 * i // len(scored)]) for i, (t, s) in enumerate(scored)]


def hyperparameters(trial: Run) -> str:
    """Format the hyperparameters of a trial, such as "learning_rate 3e-05, num_train_epochs 3"."""
    return ", ".join(f"{name} {label(value)}" for name, value in trial.hyperparameters.items())


def learning_curves(sweep: Sweep) -> charts.Specification:
    """Draw the score of every trial by step, the best fifth on top.

    A triangle marks a trial that the scheduler stopped. Dashed lines are diverged trials.
    """
    rows = [row for trial, _, fifth in ranked(sweep) for row in _evaluated(trial, fifth)]
    lost = [t for t in sweep.trials if t.status == "diverged"]
    dashed = [row for trial in lost for row in _evaluated(trial, "diverged")]
    pruned = {trial.name for trial in sweep.trials if trial.status == "pruned"}
    last = {row["trial"]: row for row in rows}
    stopped = [row for row in last.values() if row["trial"] in pruned]
    ends = [{**row, "end": "stopped by the scheduler"} for row in stopped]
    tooltip = [_TRIAL, _SCORE, alt.Tooltip(**charts.quantity("step")), _ALL]
    over = _under_pointer()
    curves = alt.Chart(alt.NamedData("curves")).mark_line(
        point={"size": 16, "filled": True}, strokeJoin="round", clip=True
    ).encode(_fifths(), _thicker(over, 1.6), _DETAIL, tooltip=tooltip).add_params(over)  # fmt: skip
    layers: list[alt.Chart] = [curves]
    if dashed:
        lost_lines = alt.Chart(alt.NamedData("diverged")).mark_line(clip=True, **_DASHED)
        layers.insert(0, lost_lines.encode(_DETAIL, tooltip=tooltip))
    if ends:
        marks = alt.Chart(alt.NamedData("ends")).mark_point(
            filled=True, size=110, color="var(--pruned)", stroke="var(--sheet)", strokeWidth=1,
            shape="triangle-down", clip=True,
        )  # fmt: skip
        layers.append(marks.encode(tooltip=[alt.Tooltip(**charts.category("end")), *tooltip]))
    scores = [row["score"] for row in (*rows, *dashed)]
    chart = alt.layer(*layers).encode(
        alt.X(
            **charts.quantity("step", "Optimizer step"),
            scale=alt.Scale(nice=False, zero=False, padding=8),
        ),
        alt.Y(**charts.quantity("score", sweep.metric), scale=charts.scale(scores)),
    )
    return charts.specification(chart, 340, zoom=True, curves=rows, diverged=dashed, ends=ends)


def timeline(sweep: Sweep) -> charts.Specification:
    """Draw the time span of every trial, in minutes since the first start, colored by state."""
    begun = [(t, t.started) for t in sweep.trials if t.started is not None]
    first = min((started for _, started in begun), default=0.0)
    latest = max((t.ended or started for t, started in begun), default=0.0)
    rows = [
        {"trial": t.name, "from": (started - first) / 60,
         "to": (max(t.ended or latest, started) - first) / 60, "state": t.status.capitalize(),
         "steps": f"{t.steps or 0} of {t.last_step or '?'}", "hyperparameters": hyperparameters(t)}
        for t, started in begun
    ]  # fmt: skip
    few = len(rows) <= 40
    states = [state for state in ENDS if any(trial.status == state for trial, _ in begun)]
    colors = alt.Scale(
        domain=[state.capitalize() for state in states],
        range=[f"var(--{state})" for state in states],
    )
    chart = alt.Chart(alt.NamedData("rows")).mark_bar(cornerRadius=1, minBandSize=2).encode(
        alt.X(**charts.quantity("from", "Minutes since the first trial began")),
        alt.X2(field="to"),
        alt.Y(**charts.category("trial", title=None if few else "Trials", sort=None),
              axis=alt.Axis(labels=few, ticks=False, domain=False)),
        charts.color(rows, "state", scale=colors),
        tooltip=[*(alt.Tooltip(**charts.category(name)) for name in ("trial", "state", "steps")), _ALL],
    )  # fmt: skip
    return charts.specification(chart, (16 if few else 4) * max(len(rows), 1), rows=rows)


def parallel_coordinates(sweep: Sweep) -> charts.Specification:
    """Draw a line for each trial, through its hyperparameters to its score.

    Dashed lines are diverged trials.
    """
    scored = ranked(sweep)
    results = axis(sweep.metric or "score", "uniform", [score for _, score, _ in scored])
    columns = [*axes(sweep), results]
    rows = [point for each in scored for point in _through(columns, *each)]
    lost = [trial for trial in sweep.trials if trial.status == "diverged"]
    dashed = [point for trial in lost for point in _through(columns, trial, None, "diverged")]
    ticks = [{"axis": a.name, "at": at, "label": text} for a in columns for at, text in a.ticks()]
    tooltip, over = [_TRIAL, _SCORE, _ALL], _under_pointer()
    lines = alt.Chart(alt.NamedData("trials")).mark_line(opacity=0.85)
    layers = [
        lines.encode(_fifths(), _thicker(over, 1.4), _DETAIL, tooltip=tooltip).add_params(over)
    ]
    if dashed:
        lost_lines = alt.Chart(alt.NamedData("diverged")).mark_line(**_DASHED)
        layers.insert(0, lost_lines.encode(_DETAIL, tooltip=tooltip))
    rims: tuple[dict[str, Any], ...] = ({"stroke": "var(--sheet)", "strokeWidth": 4}, {})
    for rim in rims:  # twice: first a rim, which keeps the text legible on lines
        text = alt.Chart(alt.NamedData("ticks")).mark_text(
            align="left", dx=5, fontSize=11, color="var(--muted)", **rim
        )
        layers.append(text.encode(alt.Text(**charts.category("label"))))
    head = alt.Axis(
        orient="top", labelAngle=0, labelOverlap=False, labelLimit=190, ticks=False, domain=False,
        grid=True, labelColor="var(--ink)",
    )  # fmt: skip
    chart = alt.layer(*layers).encode(
        alt.X(**charts.category("axis", title=None, sort=[a.name for a in columns]), axis=head,
              scale=alt.Scale(type="point", padding=0.35)),
        alt.Y(**charts.quantity("at"), axis=None, scale=alt.Scale(domain=[-0.03, 1.03])),
    )  # fmt: skip
    found = charts.specification(chart, 340, trials=rows, diverged=dashed, ticks=ticks)
    return {
        **found,
        "padding": {"left": 5, "top": 5, "right": 45, "bottom": 5},
    }  # for the last ticks


def score_against(sweep: Sweep, across: "Axis") -> charts.Specification:
    """Draw the scores of the trials against one hyperparameter.

    Hollow points are trials that have not finished their training.
    """
    rows: list[Row] = [
        {"trial": trial.name, "score": score, "hyperparameters": hyperparameters(trial),
         "x": label(value) if across.kind == "listed" else value, "fifth": fifth,
         "state": trial.status.capitalize()}
        for trial, score, fifth in ranked(sweep)
        if across.position(value := trial.hyperparameters.get(across.name)) is not None
    ]  # fmt: skip
    values = [row["x"] for row in rows]
    if across.kind == "listed":
        shown = charts.category("x", title=None, sort=list(across.values))
        x = alt.X(**shown, axis=alt.Axis(labelAngle=0))
    else:
        ticks = alt.Axis(tickCount=4, format=".0e" if 0 < across.high < 0.01 else "~g")
        spread = charts.scale(values, type=across.kind, nice=False, padding=8)
        x = alt.X(**{**charts.quantity("x"), "title": None}, axis=ticks, scale=spread)
    fifth = charts.category(**_FIFTH, legend=None)
    filled = alt.when("datum.state === 'Finished'").then(alt.Fill(**fifth))
    chart = alt.Chart(alt.NamedData("trials")).mark_point(size=45, strokeWidth=1.6).encode(
        x,
        alt.Y(**charts.quantity("score", sweep.metric), scale=charts.scale(r["score"] for r in rows)),
        alt.Stroke(**fifth),
        fill=filled.otherwise(alt.value("transparent")),
        tooltip=[_TRIAL, _SCORE, alt.Tooltip(**charts.category("state")), _ALL],
    )  # fmt: skip
    return charts.specification(chart, 200, trials=rows)


def _evaluated(trial: Run, fifth: str) -> list[Row]:
    return [
        {"trial": trial.name, "step": e.step, "score": e.score, "fifth": fifth,
         "hyperparameters": hyperparameters(trial)}
        for e in trial.evaluations
        if math.isfinite(e.score)
    ]  # fmt: skip


def _through(
    columns: Sequence["Axis"], trial: Run, score: float | None, fifth: str
) -> Iterator[Row]:
    """Yield the points of a trial's line, one on each axis on which the trial has a value."""
    for column in columns:
        value = score if column is columns[-1] else trial.hyperparameters.get(column.name)
        if (place := column.position(value)) is not None:
            yield {"trial": trial.name, "axis": column.name, "at": place, "fifth": fifth,
                   "score": score, "hyperparameters": hyperparameters(trial)}  # fmt: skip


def _fifths() -> alt.Color:
    return charts.color([{"fifth": fifth} for fifth in FIFTHS], **_FIFTH)


def _under_pointer() -> alt.Parameter:
    return alt.selection_point(name="over", on="pointerover", fields=["trial"], empty=False)


def _thicker(over: alt.Parameter, width: float) -> alt.StrokeWidthValue:
    """Return a stroke width that emphasizes the line under the pointer."""
    return alt.when(over).then(alt.StrokeWidthValue(4)).otherwise(alt.StrokeWidthValue(width))


@dataclass(frozen=True)
class Axis:
    """Axis of a hyperparameter: positions from 0 to 1 for its values, and ticks.

    Attributes:
        name: Name of the hyperparameter.
        kind: "log", "linear", or "listed" for words and for numbers chosen from a list.
        low: Lowest value, if not listed.
        high: Highest value, if not listed.
        values: Labels of a listed axis, in order.
    """

    name: str
    kind: Literal["log", "linear", "listed"]
    low: float = 0.0
    high: float = 1.0
    values: tuple[str, ...] = ()

    def position(self, value: Any) -> float | None:
        """Return the position of a value from 0 to 1, or None for a value not on the axis."""
        if self.kind == "listed":
            shown = label(value)
            if shown not in self.values:
                return None
            return (self.values.index(shown) + 0.5) / len(self.values)
        found = real(value)
        if found is None or not math.isfinite(found) or (self.kind == "log" and found <= 0):
            return None
        scaled = math.log10 if self.kind == "log" else float
        low, high, at = map(scaled, (self.low, self.high, found))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return (position, label) of all listed values, or of a few round values."""
        if self.kind == "listed":
            shown = [(self.position(value), value) for value in self.values]
        else:
            log = self.kind == "log"
            marks = _round_values(self.low, self.high, log=log) or [self.low, self.high]
            digits = 2 if self.high > self.low else 4
            shown = [(self.position(value), number(value, digits)) for value in marks]
        return [(at, text) for at, text in shown if at is not None]


def axis(name: str, domain: Any, values: Sequence[Any]) -> Axis:
    """Choose the axis of a hyperparameter.

    Words, and the domains "choice" and "grid", get a listed axis. Positive numbers get a
    logarithmic axis for "loguniform". For domains other than "uniform", they also get one if the
    largest is at least 30 times the smallest.

    Args:
        name: Name of the hyperparameter.
        domain: Its entry in the search space, such as "loguniform:1e-5:1e-3", or None.
        values: Its values in the trials.
    """
    kind = words(domain).partition(":")[0]
    numbers = [found for v in values if (found := real(v)) is not None and math.isfinite(found)]
    if kind in ("choice", "grid") or not numbers or any(real(v) is None for v in values):
        order = sorted({label(v): v for v in values}.items(), key=lambda item: _order(item[1]))
        return Axis(name, "listed", values=tuple(shown for shown, _ in order))
    low, high = min(numbers), max(numbers)
    log = low > 0 and (kind == "loguniform" or (kind != "uniform" and high / low >= 30))
    return Axis(name, "log" if log else "linear", low, high)


def axes(sweep: Sweep) -> list[Axis]:
    """Return the axes of all hyperparameters that have a value in a trial."""
    space = mapping(sweep.record.get("space"))
    found = []
    for name in sweep.fields:
        values = [t.hyperparameters[name] for t in sweep.trials if name in t.hyperparameters]
        if values:
            found.append(axis(name, space.get(name), values))
    return found


def _order(value: Any) -> tuple[bool, float, str]:
    found = real(value)
    return found is None, 0.0 if found is None else found, words(value)


def _round_values(low: float, high: float, *, log: bool) -> list[float]:
    if not high > low:
        return [low]
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in _ROUND if low <= m * 10.0**p <= high]
        return found if len(found) <= 6 else [v for v in found if f"{v:e}".startswith("1.0")]
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = max((step * m for m in (1, 2, 5) if (high - low) / (step * m) >= 2), default=step)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def importances(
    rows: Sequence[tuple[Mapping[str, Any], float]], logarithmic: Mapping[str, bool]
) -> dict[str, float]:
    """Return each hyperparameter's importance, largest first, with sum 1, by Optuna's PED-ANOVA.

    PED-ANOVA compares the distribution of a hyperparameter among the best trials with its
    distribution among all trials (Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying
    Hyperparameter Importance in Arbitrary Subspaces", IJCAI 2023).

    Args:
        rows: (hyperparameters, score) of the trials.
        logarithmic: True for a hyperparameter that is compared on a logarithmic scale.

    Returns:
        Importance by name; empty for fewer than `MIN_TRIALS` trials, or for equal scores or
            hyperparameters.
    """
    rows = [(chosen, score) for chosen, score in rows if math.isfinite(score)]
    names = [
        name
        for name in dict.fromkeys(name for chosen, _ in rows for name in chosen)
        if all(name in chosen for chosen, _ in rows)
        and len({str(chosen[name]) for chosen, _ in rows}) > 1
    ]
    if len(rows) < MIN_TRIALS or not names or len({score for _, score in rows}) < 2:
        return {}
    if len(names) == 1:
        return {names[0]: 1.0}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    spread = {
        name: _distribution([chosen[name] for chosen, _ in rows], log=logarithmic.get(name, False))
        for name in names
    }
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(direction="maximize")
            for chosen, score in rows:
                values = {name: _value(spread[name], chosen[name]) for name in names}
                study.add_trial(
                    optuna.trial.create_trial(params=values, distributions=spread, value=score)
                )
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    finally:
        optuna.logging.set_verbosity(before)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _distribution(values: Sequence[Any], *, log: bool) -> "BaseDistribution":
    from optuna import distributions

    numbers = [real(value) for value in values]
    finite = [value for value in numbers if value is not None and math.isfinite(value)]
    if len(finite) < len(values):
        return distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = min(finite), max(finite)
    if all(isinstance(value, int) for value in finite) and not log:
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=log and low > 0)


def _value(distribution: "BaseDistribution", value: Any) -> Any:
    return str(value) if hasattr(distribution, "choices") else value
