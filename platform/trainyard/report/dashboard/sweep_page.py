"""The page of a sweep: its verdict, its trials, and what their scores go with."""

import math
from collections.abc import Mapping
from typing import Any

from trainyard.report.dashboard import sweep_charts as drawn
from trainyard.report.dashboard.axes import label
from trainyard.report.dashboard.confirmation_part import Link, Rows, chosen_score, confirmation
from trainyard.report.dashboard.importance import FEWEST, importances
from trainyard.report.dashboard.records import Run, pair, without_secrets
from trainyard.report.dashboard.run_page import interval, score_cell, share
from trainyard.report.dashboard.sweeps import Sweep
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    charts,
    duration,
    number,
    per_cent,
)
from trainyard.storage import mapping, real, words


def sections(sweep: Sweep, link: Link) -> list[Section]:
    """All that is known about a sweep, top down as people ask; `link` leads to a trial's page."""
    found = [
        Section("Result", _result(sweep, link)),
        Section("Confirmation", confirmation(sweep, link)),
        Section("Trials", _trials(sweep, link)),
        Section("Learning curves", _curves(sweep)),
        Section("Hyperparameters", _together(sweep)),
        Section("Score against each hyperparameter", _each(sweep), grid=True),
        Section("Config", [Facts([(name, without_secrets(words(value)))
                for name, value in mapping(sweep.record.get("config")).items()])], folded=True),
    ]  # fmt: skip
    return found


def _result(sweep: Sweep, link: Link) -> list[Any]:
    parts: list[Any] = [Text(f"{problem}.", "error") for problem in sweep.problems]
    if sweep.reason:
        parts.append(Text(sweep.reason, "error" if sweep.status == "failed" else "warning"))
    states = [trial.status for trial in sweep.trials]
    counts = {state: states.count(state) for state in drawn.ENDS if state in states}
    made = [t.steps for t in sweep.trials if t.steps is not None]
    full = [t.last_step for t in sweep.trials if t.last_step is not None]
    cost = share(sum(made), sum(full))
    best = sweep.best
    asked = max(real(sweep.record.get("num_trials")) or 0, len(states))
    ended = sum(trial.has_ended for trial in sweep.trials)
    parts.append(
        Facts(
            [
                *_chosen(sweep, link),
                ("Trials", Cell(number(ended), note=f"ended of {number(asked)}")),
                ("Verdict", words(sweep.record.get("verdict")) or _no_verdict(sweep)),
                (
                    "Steps trained",
                    Cell(per_cent(cost), note="of training each trial fully"),
                ),
                ("Time", duration(sweep.seconds)),
            ],
            wide=True,
        )
    )  # fmt: skip
    parts.append(
        Facts(
            [
                ("Searcher", words(sweep.record.get("searcher"))),
                ("Scheduler", words(sweep.record.get("scheduler"))),
                *((state.capitalize(), Cell(str(n), status=state)) for state, n in counts.items()),
            ]
        )
    )
    default = mapping(mapping(sweep.record.get("confirmation")).get("default"))
    given = best.hyperparameters if best else {}
    if sweep.keeps_default:
        given = mapping(default.get("hyperparameters"))
    space = mapping(sweep.record.get("space"))
    rows: Rows = [[f, label(space.get(f)), label(given.get(f))] for f in sweep.fields]
    chosen = f"In {best.name}" if best else "Best"
    if sweep.keeps_default:
        chosen = "In the default recipe"
    parts.append(Table("What was searched", ["Hyperparameter", "Searched", chosen], rows))
    return parts


def _chosen(sweep: Sweep, link: Link) -> list[tuple[str, Cell | None]]:
    """What to use, with the score to expect of it."""
    best, metric = sweep.best, sweep.metric or "score"
    score = chosen_score(sweep)
    own = (f"Its {metric}", Cell(score.text, note=score.note))
    if sweep.keeps_default:
        winner = mapping(mapping(sweep.record.get("confirmation")).get("winner")).get("trial")
        lost = next((trial for trial in sweep.trials if trial.name == winner), best)
        return [
            ("Result", Cell("default recipe", note="in best.yaml and model/")),
            own,
            ("Worse when run again", Cell(lost.name, href=link(lost)) if lost else None),
        ]
    trial = Cell(best.name, href=link(best)) if best else None
    return [(_title(sweep), trial), own, *_corrected(sweep)]


def _no_verdict(sweep: Sweep) -> str:
    return "withheld" if sweep.record.get("confirmation") else "not confirmed"


def _title(sweep: Sweep) -> str:
    """A sweep that is confirmed may have chosen another trial than the one of the best score."""
    chosen = mapping(sweep.record.get("result")).get("best_trial")
    if sweep.best and sweep.best.name == chosen:
        return "Winner"
    return "Best so far" if sweep.status == "running" else "Best trial"


def _corrected(sweep: Sweep) -> list[tuple[str, Cell]]:
    """The winner's score, corrected for having been picked; it is the one to quote."""
    winner = mapping(mapping(sweep.record.get("confirmation")).get("winner"))
    score = real(winner.get("corrected"))
    if score is None:
        return []
    return [
        (
            f"Corrected {sweep.metric}",
            Cell(f"{score:.4f}", note=interval(*pair(winner.get("interval")))),
        )
    ]


def _trials(sweep: Sweep, link: Link) -> list[Table]:
    default = mapping(mapping(sweep.record.get("confirmation")).get("default")).get(
        "hyperparameters"
    )
    rows: Rows = []
    why: Rows = []
    for trial in sweep.trials:
        steps, last = trial.steps, trial.last_step
        done = share(steps, last)
        note = f"at step {number(steps)}" if trial.status == "pruned" and steps else ""
        if (trial.reason and trial.status != "pruned") or trial.problems:
            said = " ".join([trial.reason, *trial.problems]).strip()
            why.append(
                [Cell(trial.name, href=link(trial)), Cell(trial.status, status=trial.status), said]
            )
        rows.append(
            [
                Cell(
                    trial.name,
                    href=link(trial),
                    note=_origin(trial, default),
                ),
                Cell(trial.status, status=trial.status, note=note),
                score_cell(trial),
                *(_value(trial.hyperparameters.get(field)) for field in sweep.fields),
                Cell("–" if steps is None else f"{number(steps)} of {number(last)}",
                     sort=math.nan if steps is None else steps, share=done),
                Cell(duration(trial.seconds), sort=math.nan if trial.seconds is None else trial.seconds),
            ]
        )  # fmt: skip
    found = [
        Table(
            "A score is the best evaluation so far, with its 95 % interval",
            ["Trial", "State", sweep.metric or "Score", *sweep.fields, "Steps", "Time"],
            rows,
            empty="No trial has been decided yet.",
        )
    ]
    return (
        [*found, Table("Why trials did not end well", ["Trial", "State", "Reason"], why)]
        if why
        else found
    )


def _origin(trial: Run, default: Mapping[str, Any] | None) -> str:
    """Where a trial comes from, if that is worth a word."""
    if trial.trial.get("parent"):  # of a population
        return f"goes on from {words(trial.trial['parent'])}"
    return "default recipe" if trial.hyperparameters == default else ""


def _value(value: Any) -> Cell:
    found = real(value)
    return Cell(
        label(value), sort=math.nan if value is None else words(value) if found is None else found
    )


def _curves(sweep: Sweep) -> list[Any]:
    if not any(trial.evaluations for trial in sweep.trials):
        return [Text("No trial has been evaluated yet.", "note")]
    stopped = sum(trial.status == "pruned" for trial in sweep.trials)
    said = (
        f"{stopped} of {len(sweep.trials)} trials were stopped by the scheduler, at the triangles. "
        if stopped
        else ""
    )
    return [
        Figure(
            f"{sweep.metric or 'Score'} of every trial",
            drawn.learning_curves(sweep),
            f"{said}The best fifth is on top, dashed lines diverged. Point at a line for its "
            "hyperparameters.",
        ),
        Figure("When each trial ran, and how it ended", drawn.timeline(sweep)),
    ]


def _together(sweep: Sweep) -> list[Any]:
    scored = drawn.ranked(sweep)
    if not scored:
        return [Text("No trial has a score yet.", "note")]
    parts: list[Any] = [
        Figure(
            "Parallel coordinates",
            drawn.parallel_coordinates(sweep),
            "One line per trial through its hyperparameters to its score. Dashed lines diverged.",
            min_width=130 * (len(sweep.fields) + 1),
        )
    ]
    logarithmic = {axis.name: axis.kind == "log" for axis in drawn.axes(sweep)}
    step, rows = compared(sweep)
    if found := importances(rows, logarithmic):
        bars = [{"hyperparameter": name, "importance": value} for name, value in found.items()]
        parts.append(
            Figure(
                "Importance",
                charts.bars(bars, "importance", "hyperparameter"),
                f"How differently each is distributed among the best of {len(rows)} trials than among "
                f"all (PED-ANOVA, by Optuna), in sum 1, by their scores at step {step}, the last that "
                "four fifths of them reached. It tells what good trials share in this space, not what "
                "causes a score.",
            )
        )
    else:
        parts.append(Text(f"Importance is told from {FEWEST} trials with a score on.", "note"))
    return parts


def compared(sweep: Sweep) -> tuple[int, list[tuple[Mapping[str, Any], float]]]:
    """Hyperparameters and scores of trials at the same step, so that budgets do not tell.

    A scheduler trains the better trials for longer: their best scores would show that too.
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


def _each(sweep: Sweep) -> list[Any]:
    known = drawn.axes(sweep)
    if not drawn.ranked(sweep) or not known:
        return [Text("No trial has a score yet.", "note")]
    note = Text("Filled: trained to its end. Hollow: stopped before.", "note")
    return [note, *(Figure(axis.name, drawn.score_against(sweep, axis)) for axis in known)]
