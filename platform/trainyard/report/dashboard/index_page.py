"""The first page: every sweep and every run below the storage path."""

import math
import time
from collections.abc import Callable

from trainyard.report.dashboard.confirmation_part import chosen_score
from trainyard.report.dashboard.records import Run
from trainyard.report.dashboard.run_page import score_cell, share
from trainyard.report.dashboard.sweeps import Sweep, Yard
from trainyard.report.kit import Cell, Facts, Section, Table, duration, number


def sections(yard: Yard, link: Callable[[Run | Sweep], str | None]) -> list[Section]:
    """Counts, sweeps, runs; the newest first."""
    everything: list[Run | Sweep] = [*yard.sweeps.values(), *yard.runs.values()]
    states = [found.status for found in everything]
    counts = [
        ("Running", states.count("running")),
        ("Finished", states.count("finished")),
        ("Stopped", states.count("stopped")),
        ("Failed", states.count("failed") + states.count("diverged")),
    ]
    sweeps = sorted(yard.sweeps.values(), key=_newest_first)
    runs = sorted(yard.runs.values(), key=_newest_first)
    return [
        Section("Now", [Facts([(name, number(count)) for name, count in counts], wide=True)]),
        Section(
            "Sweeps",
            [
                Table(
                    "Searches for hyperparameters",
                    ["Sweep", "State", "Best", "Trials", "Verdict", "Started", "Time"],
                    [_sweep(sweep, link(sweep)) for sweep in sweeps],
                    empty="None yet: python jobs/tune.py starts one.",
                    order="-Started",
                )
            ],
        ),
        Section(
            "Runs",
            [
                Table(
                    "Runs that are part of no sweep",
                    ["Run", "State", "Task", "Best", "Steps", "Started", "Time"],
                    [_run(run, link(run)) for run in runs],
                    empty="None yet: python jobs/train.py starts one.",
                    order="-Started",
                )
            ],
        ),
    ]


def _newest_first(found: Run | Sweep) -> tuple[float, str]:
    return -(found.started or 0.0), found.name


def _sweep(sweep: Sweep, href: str | None) -> list[Cell]:
    ended = [trial for trial in sweep.trials if trial.has_ended]
    return [
        Cell(sweep.name, href=href),
        Cell(sweep.status, status=sweep.status),
        chosen_score(sweep),
        Cell(f"{len(ended)} of {max(len(sweep.trials), _asked(sweep))}", len(ended)),
        Cell(str(sweep.record.get("verdict") or "–")),
        _moment(sweep.started),
        _span(sweep.seconds),
    ]


def _asked(sweep: Sweep) -> int:
    asked = sweep.record.get("num_trials")
    return asked if isinstance(asked, int) else 0


def _run(run: Run, href: str | None) -> list[Cell]:
    steps, last = run.steps, run.last_step
    text = (
        "–" if steps is None else number(steps) + (f" of {number(last)}" if last != steps else "")
    )
    return [
        Cell(run.name, href=href),
        Cell(run.status, status=run.status),
        Cell(run.task or "–"),
        score_cell(run),
        Cell(text, math.nan if steps is None else steps,
             share=share(steps, last) if run.status == "running" else None),
        _moment(run.started),
        _span(run.seconds),
    ]  # fmt: skip


def _moment(seconds: float | None) -> Cell:
    if seconds is None:
        return Cell("–", math.nan)
    return Cell(time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)), seconds)


def _span(seconds: float | None) -> Cell:
    return Cell(duration(seconds), math.nan if seconds is None else seconds)
