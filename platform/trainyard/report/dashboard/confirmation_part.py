"""What a sweep's page says of its confirmation, and of the score to quote."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from trainyard.report.dashboard.records import Run, pair
from trainyard.report.dashboard.run_page import interval, score_cell
from trainyard.report.dashboard.sweeps import Sweep
from trainyard.report.kit import Cell, Figure, Table, Text, Value, charts, number
from trainyard.storage import mapping, real, words

Link = Callable[[Run], str | None]
Rows = list[list[Cell | Value]]

VERDICTS = {
    "better": "The winner is better than the default recipe",
    "worse": "The winner is worse than the default recipe",
    "not distinguishable": "The winner is not distinguishable from the default recipe",
}


def confirmation(sweep: Sweep, link: Link) -> list[Any]:
    """The verdict with what it rests on, and the runs behind it, also while it is to come."""
    found = mapping(sweep.record.get("confirmation"))
    parts = _judged(sweep, found) if found else [Text(_not_judged(sweep), "note")]
    if not sweep.confirmations:
        return parts
    rows: Rows = [
        [Cell(run.name, href=link(run)), Cell(run.status, status=run.status), score_cell(run), run.reason]
        for run in sorted(sweep.confirmations, key=lambda run: run.name)
    ]  # fmt: skip
    return [*parts, Table("Its runs", ["Run", "State", "Score", "Reason"], rows)]


def _not_judged(sweep: Sweep) -> str:
    if sweep.confirmations and sweep.status == "running":
        return (
            "The best trials and the default recipe are run again with fresh seeds; the verdict comes "
            "when they have finished."
        )
    if sweep.best is None:
        return "There is nothing to confirm yet."
    return (
        "The best score above is that of a trial picked for it, and so too high. A confirmation runs the "
        "best again with fresh seeds; it has not come to a verdict."
    )


def _judged(sweep: Sweep, found: Mapping[str, Any]) -> list[Any]:
    gain = mapping(found.get("difference"))
    verdict = VERDICTS.get(
        words(found.get("verdict")), "The winner and the default recipe were run again"
    )
    value, low, high = (real(gain.get(name)) for name in ("value", "low", "high"))
    parts: list[Any] = []
    if value is not None:
        parts.append(Text(f"{verdict}: {value:+.4f} {sweep.metric} ({interval(low, high)}, 95 %), "
                          "each run again with seeds that no choice was made on."))  # fmt: skip
    parts.append(Text(_method(found), "note"))
    candidates = [c for c in found.get("candidates") or [] if isinstance(c, dict)]
    named = [("winner", mapping(found.get("winner"))), ("default", mapping(found.get("default")))]
    winner = named[0][1].get("trial")
    named += [(words(c["trial"]), c) for c in candidates if c.get("trial") not in (None, winner)]
    rows: Rows = []
    dots = []
    for name, block in named:
        if not block:
            continue
        low, high = pair(block.get("interval"))
        mean, corrected = real(block.get("mean")), real(block.get("corrected"))
        center = mean if corrected is None else corrected
        ends = interval(low, high)
        scores = [s for v in block.get("scores") or [] if (s := real(v)) is not None]
        rows.append(
            [name, words(block.get("trial")),
             _number(mean, ends if corrected is None else ""),
             _number(corrected, ends if corrected is not None else ""),
             ", ".join(f"{s:.4f}" for s in scores)]
        )  # fmt: skip
        dots.append({"configuration": name, "score": center, "low": low, "high": high})
    parts.append(
        Table(
            "Run again with fresh seeds",
            ["Configuration", "Trial", "Mean", "Corrected", "Scores"],
            rows,
        )
    )
    if any(row["score"] is not None for row in dots):
        chart = charts.dots(dots, "score", "configuration", low="low", high="high")
        parts.append(Figure("Score with its interval", chart))
    return parts


def _number(value: float | None, note: str) -> Cell:
    return Cell(number(value), math.nan if value is None else value, note)


def _method(found: Mapping[str, Any]) -> str:
    """How the claim was made, and why there is no verdict where there is none."""
    method = words(found.get("method"))
    if not method:
        return (
            "An earlier version made this claim: it corrects for the choice among the candidates, not "
            "for the choice among all trials, and says “better” too often."
        )
    rows = mapping(found.get("rows"))
    sentences = [
        f"Judged on {number(real(rows.get('confirmed')))} {method}; the search chose by the other "
        f"{number(real(rows.get('searched')))}.",
        f"The intervals cover {words(found.get('covers'))}, and all looks at these rows together "
        f"(this is look {number(real(found.get('look')))}).",
    ]
    if withheld := words(found.get("withheld")):
        sentences.append(f"No verdict: {withheld}.")
    return " ".join(sentences)


def chosen_score(sweep: Sweep) -> Cell:
    """Score of what the sweep recommends: a trial's best, or the default recipe's mean."""
    if sweep.keeps_default:
        block = mapping(mapping(sweep.record.get("confirmation")).get("default"))
        score = real(block.get("corrected"))
        if score is None:
            score = real(block.get("mean"))
        if score is not None:
            return Cell(f"{score:.4f}", score, interval(*pair(block.get("interval"))))
    return score_cell(sweep.best) if sweep.best else Cell("–", math.nan)
