"""Page of a sweep: the verdict, the trials, and the effect of hyperparameters on their scores."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from trainyard.metrics import metric_label
from trainyard.report import kit
from trainyard.report.dashboard import sweep_charts as drawn
from trainyard.report.dashboard.index_page import MOST_COMPARED, chosen_score
from trainyard.report.dashboard.records import Run, Sweep, pair
from trainyard.report.dashboard.run_page import (  # fmt: skip
    config_section,
    interval,
    label,
    problems,
    score_cell,
    share,
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
    number,
    number_cell,
    percent,
    status_cell,
)
from trainyard.storage import mapping, real, words
from trainyard.summary import duration

Link = Callable[[Run], str | None]
"""Returns the URL of a run's page, or None in a file that is exported."""
Rows = list[list[Cell | Value]]

VERDICTS = {
    "better": "The winner is better than the default recipe",
    "worse": "The winner is worse than the default recipe",
    "not distinguishable": "The winner is not distinguishable from the default recipe",
}
"""Recorded verdict -> beginning of the sentence about it."""


def sections(sweep: Sweep, link: Link, compare: str) -> list[Section]:
    """Return the content of a sweep's page, the verdict first.

    Args:
        sweep: Sweep to show.
        link: Returns the URL of a trial's page.
        compare: URL of the page that compares trials; empty for none.
    """
    return [
        Section("Result", _result(sweep, link)),
        Section("Confirmation", _confirmation(sweep, link)),
        Section("Trials", _trials(sweep, link, compare)),
        Section("Learning curves", _curves(sweep)),
        Section("Hyperparameters", _together(sweep)),
        Section("Score against each hyperparameter", _each(sweep), grid=True),
        config_section(sweep.config),
    ]


def _result(sweep: Sweep, link: Link) -> list[Part]:
    states = [trial.status for trial in sweep.trials]
    counts = {state: states.count(state) for state in drawn.ENDS if state in states}
    made = [t.steps for t in sweep.trials if t.steps is not None]
    full = [t.last_step for t in sweep.trials if t.last_step is not None]
    ended = sum(trial.has_ended for trial in sweep.trials)
    wide = [
        *_chosen(sweep, link),
        ("Trials", Cell(number(ended), note=f"ended of {number(sweep.num_trials)}")),
        ("Steps trained", Cell(percent(share(sum(made), sum(full))),
                               note="of the steps of full training")),
        ("Time", Cell(duration(sweep.seconds))),
    ]  # fmt: skip
    small = [
        ("Searcher", Cell(words(sweep.record.get("searcher")))),
        ("Scheduler", Cell(words(sweep.record.get("scheduler")))),
        *((state.capitalize(), status_cell(state, text=str(n))) for state, n in counts.items()),
    ]
    best = sweep.best
    chosen = best.hyperparameters if best else {}
    title = f"In {best.name}" if best else "Best"
    if sweep.keeps_default:
        chosen, title = mapping(sweep.default.get("hyperparameters")), "In the default recipe"
    space = mapping(sweep.record.get("space"))
    rows: Rows = [[f, label(space.get(f)), label(chosen.get(f))] for f in sweep.fields]
    return [
        *([Text(sentence, "headline")] if (sentence := _verdict(sweep)) else []),
        *problems(sweep),
        Facts(wide, wide=True),
        Facts(small),
        Table("Search space and choice", ["Hyperparameter", "Searched", title], rows),
    ]


def _verdict(sweep: Sweep) -> str:
    """Return a sentence that compares the winner with the default recipe.

    It is empty before the confirmation has a difference.
    """
    gain = mapping(sweep.confirmation.get("difference"))
    value, low, high = (real(gain.get(name)) for name in ("value", "low", "high"))
    if value is None:
        return ""
    difference = f"{metric_label(sweep.metric or 'score')} {value:+.4f}"
    if span := interval(low, high):
        difference += f" ({span})" if low == high else f" (95\u00a0% interval {span})"
    if withheld := sweep.confirmation.get("withheld"):
        return f"No verdict: {words(withheld)}. Winner minus default recipe: {difference}."
    verdict = words(sweep.confirmation.get("verdict"))
    sentence = VERDICTS.get(verdict, "The winner and the default recipe were run again")
    return f"{sentence}: {difference}, each run again with fresh seeds."


def _chosen(sweep: Sweep, link: Link) -> list[tuple[str, Cell]]:
    best, metric = sweep.best, metric_label(sweep.metric or "score")
    its_score = (f"Its {metric}", chosen_score(sweep))
    if sweep.keeps_default:
        name = sweep.winner.get("trial")
        lost = next((trial for trial in sweep.trials if trial.name == name), best)
        worse = Cell(lost.name, href=link(lost)) if lost else Cell("–")
        result = Cell("Default recipe", note="in best.yaml and model/")
        return [("Result", result), its_score, ("Worse when run again", worse)]
    trial = Cell(best.name, href=link(best)) if best else Cell("–")
    found = [(_title(sweep), trial), its_score]
    if (corrected := real(sweep.winner.get("corrected"))) is not None:
        span = interval(*pair(sweep.winner.get("interval")))
        found.append((f"Corrected {metric}", Cell(f"{corrected:.4f}", note=span)))
    return found


def _title(sweep: Sweep) -> str:
    """Return the role of the trial that is shown.

    The winner of a confirmed sweep may differ from the trial with the best score.
    """
    chosen = sweep.result.get("best_trial")
    if sweep.best and sweep.best.name == chosen:
        return "Winner"
    return "Best so far" if sweep.status == "running" else "Best trial"


def _confirmation(sweep: Sweep, link: Link) -> list[Part]:
    """Return the scores that decide the verdict, and the confirming runs in any state."""
    parts: list[Part] = _confirmed(sweep) if sweep.confirmation else [Text(_pending(sweep), "note")]
    if not sweep.confirmations:
        return parts
    rows: Rows = [
        [Cell(run.name, href=link(run)), status_cell(run.status), score_cell(run), run.reason]
        for run in sorted(sweep.confirmations, key=lambda run: run.name)
    ]
    return [*parts, Table("Confirming runs", ["Run", "State", "Score", "Reason"], rows)]


def _pending(sweep: Sweep) -> str:
    if sweep.confirmations and sweep.status == "running":
        return (
            "The best trials and the default recipe are run again with fresh seeds; the verdict comes "
            "when they have finished."
        )
    if sweep.best is None:
        return "There is nothing to confirm yet."
    return (
        "The best score above belongs to a trial chosen for it, so it is too high. Confirmation runs "
        "the best trials again with fresh seeds; it has not reached a verdict."
    )


def _confirmed(sweep: Sweep) -> list[Part]:
    found = sweep.confirmation
    candidates = [c for c in found.get("candidates") or [] if isinstance(c, dict)]
    named = [("Winner", sweep.winner), ("Default recipe", sweep.default)]
    others = [c for c in candidates if c.get("trial") not in (None, sweep.winner.get("trial"))]
    named += [(words(c["trial"]), c) for c in others]
    rows: Rows = []
    dots = []
    for name, block in named:
        if not block:
            continue
        low, high = pair(block.get("interval"))
        mean, corrected = real(block.get("mean")), real(block.get("corrected"))
        span = interval(low, high)
        scores = [f"{s:.4f}" for v in block.get("scores") or [] if (s := real(v)) is not None]
        rows.append(
            [name, words(block.get("trial")),
             number_cell(mean, note=span if corrected is None else ""),
             number_cell(corrected, note="" if corrected is None else span), ", ".join(scores)]
        )  # fmt: skip
        center = mean if corrected is None else corrected
        dots.append({"configuration": name, "score": center, "low": low, "high": high})
    columns = ["Configuration", "Trial", "Mean", "Corrected", "Scores"]
    parts: list[Part] = [
        Text(_method(found), "note"),
        Table("Scores with fresh seeds", columns, rows),
    ]
    if any(row["score"] is not None for row in dots):
        chart = kit.charts.dots(dots, "score", "configuration", low="low", high="high")
        parts.append(Figure("Score with its interval", chart))
    return parts


def _method(found: Mapping[str, Any]) -> str:
    method = words(found.get("method") or "")
    if not method:
        return (
            "This verdict was made by an earlier version. It corrects for the choice among the "
            "candidates, not for the choice among all trials, and says “better” too often."
        )
    rows = mapping(found.get("rows"))
    return (
        f"Decided on {number(real(rows.get('confirmed')))} {method}; the search chose by the other "
        f"{number(real(rows.get('searched')))}. The intervals cover {words(found.get('covers'))}, and "
        f"all looks at these rows together (this is look {number(real(found.get('look')))})."
    )


def _trials(sweep: Sweep, link: Link, compare: str) -> list[Part]:
    default = sweep.default.get("hyperparameters")
    rows: Rows = []
    reasons: Rows = []
    for trial in sweep.trials:
        name = Cell(trial.name, href=link(trial))
        note = ""
        if trial.status == "pruned" and trial.steps:
            note = f"at step {number(trial.steps)}"
        elif trial.reason or trial.problems:
            sentences = " ".join([trial.reason, *trial.problems]).strip()
            reasons.append([name, status_cell(trial.status), sentences])
        rows.append(
            [
                Cell(trial.name, href=name.href, note=_origin(trial, default)),
                status_cell(trial.status, note),
                score_cell(trial),
                *(_value(trial.hyperparameters.get(field)) for field in sweep.fields),
                steps_cell(trial),
                time_cell(trial.seconds),
            ]
        )
    columns = ["Trial", "State", sweep.metric or "Score", *sweep.fields, "Steps", "Time"]
    caption = "Best evaluation of each trial so far, with its 95 % interval"
    found: list[Part] = [
        Table(
            caption,
            columns,
            rows,
            empty="No trial has been proposed yet.",
            select=compare,
            keys=[trial.key for trial in sweep.trials],
            most=MOST_COMPARED,
        )
    ]
    if reasons:
        found.append(Table("Reasons of other ends", ["Trial", "State", "Reason"], reasons))
    return found


def _origin(trial: Run, default: Mapping[str, Any] | None) -> str:
    if trial.trial.get("parent"):  # population-based training
        return f"continues {words(trial.trial['parent'])}"
    return "default recipe" if trial.hyperparameters == default else ""


def _value(value: Any) -> Cell:
    found = real(value)
    if found is not None:
        return Cell(label(value), sort=found)
    return Cell(label(value), sort=math.nan if value is None else words(value))


def _curves(sweep: Sweep) -> list[Part]:
    if not any(trial.evaluations for trial in sweep.trials):
        return [Text("No trial has been evaluated yet.", "note")]
    stopped = sum(trial.status == "pruned" for trial in sweep.trials)
    triangles = f"The scheduler stopped {stopped} of {len(sweep.trials)} trials, at the triangles. "
    return [
        Figure(
            f"{metric_label(sweep.metric or 'Score')} of every trial",
            drawn.learning_curves(sweep),
            f"{triangles if stopped else ''}The best fifth is on top, dashed lines diverged. Point at "
            "a line for its hyperparameters.",
        ),
        Figure("Time span and end of each trial", drawn.timeline(sweep)),
    ]


def _together(sweep: Sweep) -> list[Part]:
    if not drawn.ranked(sweep):
        return [Text("No trial has a score yet.", "note")]
    parallel = Figure(
        "Parallel coordinates",
        drawn.parallel_coordinates(sweep),
        "One line per trial through its hyperparameters to its score. Dashed lines diverged.",
        min_width=130 * (len(sweep.fields) + 1),
    )
    logarithmic = {axis.name: axis.kind == "log" for axis in drawn.axes(sweep)}
    step, rows = compared(sweep)
    found = drawn.importances(rows, logarithmic)
    if not found:
        least = f"Importance needs {drawn.MIN_TRIALS} trials with different scores."
        return [parallel, Text(least, "note")]
    bars = [{"hyperparameter": name, "importance": value} for name, value in found.items()]
    importance = Figure(
        "Importance",
        kit.charts.bars(bars, "importance", "hyperparameter"),
        f"Difference between the distribution among the best of {len(rows)} trials and among all "
        f"(PED-ANOVA, by Optuna); sum 1. Scores are those at step {step}, which four fifths of the "
        "trials reached. It shows what good trials share in this space, not what causes a score.",
    )
    return [parallel, importance]


def compared(sweep: Sweep) -> tuple[int, list[tuple[Mapping[str, Any], float]]]:
    """Return a step, and (hyperparameters, best score up to it) of the trials that reached it.

    Four fifths of the trials reached the step. A scheduler trains better trials for longer, so
    their best scores over all steps would also reflect their number of steps.
    """
    trials = [trial for trial in sweep.trials if trial.status != "diverged"]
    curves = [(t, [e for e in t.evaluations if math.isfinite(e.score)]) for t in trials]
    curves = [(trial, curve) for trial, curve in curves if curve]
    ends = sorted((curve[-1].step for _, curve in curves), reverse=True)
    step = ends[math.ceil(0.8 * len(ends)) - 1] if ends else 0
    return step, [
        (trial.hyperparameters, max(e.score for e in curve if e.step <= step))
        for trial, curve in curves
        if curve[0].step <= step <= curve[-1].step
    ]


def _each(sweep: Sweep) -> list[Part]:
    axes = drawn.axes(sweep)
    if not drawn.ranked(sweep) or not axes:
        return [Text("No trial has a score yet.", "note")]
    note = Text("Filled: trained to its end. Hollow: stopped before.", "note")
    return [note, *(Figure(axis.name, drawn.score_against(sweep, axis)) for axis in axes)]
