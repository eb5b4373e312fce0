"""Index page: every sweep, run and report below the storage path."""

import math
from collections.abc import Callable

from trainyard.report.dashboard.records import Report, Run, Sweep, Yard, pair
from trainyard.report.dashboard.run_page import interval, score_cell, steps_cell, time_cell
from trainyard.report.kit import (
    Cell,
    Facts,
    Section,
    Table,
    Value,
    moment_cell,
    number,
    number_cell,
    status_cell,
)
from trainyard.storage import real, words

Link = Callable[[Run | Sweep | Report], str | None]


def sections(yard: Yard, link: Link) -> list[Section]:
    """Counts, sweeps, runs and reports; the newest first."""
    everything: list[Run | Sweep] = [*yard.sweeps.values(), *yard.runs.values()]
    states = [found.status for found in everything]
    counts = {
        "Running": states.count("running"),
        "Finished": states.count("finished"),
        "Stopped": states.count("stopped"),
        "Failed": states.count("failed") + states.count("diverged"),
    }
    sweeps = sorted(yard.sweeps.values(), key=_newest_first)
    runs = sorted(yard.runs.values(), key=_newest_first)
    reports = sorted(
        yard.reports.values(), key=lambda report: (-(report.written or 0), report.name)
    )
    data, model, rate = "Data set", "Model", "Learning rate"
    tables = {
        "Sweeps": Table(
            "Searches for hyperparameters",
            [
                "Sweep",
                "State",
                data,
                model,
                "Metric",
                "Best",
                "Trials",
                "Verdict",
                "Started",
                "Time",
            ],
            [_sweep(sweep, link(sweep)) for sweep in sweeps],
            empty="None yet: trainyard tune starts one.",
            order="-Started",
            choices=["State", data, model],
        ),
        "Runs": Table(
            "Runs outside sweeps",
            ["Run", "State", data, model, "Metric", "Best", rate, "Steps", "Started", "Time"],
            [_run(run, link(run)) for run in runs],
            empty="None yet: trainyard train starts one.",
            order="-Started",
            choices=["State", data, model],
        ),
        "Reports": Table(
            "Evaluations, data examinations and GLUE suites",
            ["Report", "Kind", data, model, "Result", "Written"],
            [_report(report, link(report)) for report in reports],
            empty="None yet: trainyard eval and trainyard data-doctor write them.",
            order="-Written",
            choices=["Kind", data, model],
        ),
    }
    now = Facts([(name, number(count)) for name, count in counts.items()], wide=True)
    return [Section("Now", [now]), *(Section(title, [table]) for title, table in tables.items())]


def _newest_first(found: Run | Sweep) -> tuple[float, str]:
    return -(found.started or 0.0), found.name


def _sweep(sweep: Sweep, href: str | None) -> list[Cell | Value]:
    ended = sum(trial.has_ended for trial in sweep.trials)
    first = sweep.trials[0] if sweep.trials else None
    return [
        Cell(sweep.name, href=href),
        status_cell(sweep.status),
        first.data if first and first.data else sweep.task or "–",
        first.model if first and first.model else "–",
        sweep.metric or "–",
        chosen_score(sweep),
        number_cell(ended, f"{ended} of {sweep.num_trials}"),
        words(sweep.record.get("verdict") or ("withheld" if sweep.confirmation else None)),
        moment_cell(sweep.started),
        time_cell(sweep.seconds),
    ]


def chosen_score(sweep: Sweep) -> Cell:
    """Score of the recommendation: a trial's best, or the default recipe's mean."""
    corrected = real(sweep.default.get("corrected"))
    score = real(sweep.default.get("mean")) if corrected is None else corrected
    if sweep.keeps_default and score is not None:
        return Cell(f"{score:.4f}", score, interval(*pair(sweep.default.get("interval"))))
    return score_cell(sweep.best) if sweep.best else Cell("–", math.nan)


def _run(run: Run, href: str | None) -> list[Cell | Value]:
    rate = real(run.config.get("learning_rate"))
    return [
        Cell(run.name, href=href),
        status_cell(run.status),
        run.data or "–",
        run.model or "–",
        run.metric or "–",
        score_cell(run),
        number_cell(rate, None if rate is None else f"{rate:g}"),
        steps_cell(run),
        moment_cell(run.started),
        time_cell(run.seconds),
    ]


def _report(report: Report, href: str | None) -> list[Cell | Value]:
    model = words(report.record.get("model") or None)
    return [
        Cell(report.name, href=href),
        report.kind,
        words(report.record.get("task") or None),
        model.rstrip("/").rpartition("/")[2],
        report.result,
        moment_cell(report.written),
    ]
