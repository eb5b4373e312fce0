"""A run as people see it, from what `reader` finds in its folder."""

import re
import time
from calendar import timegm
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from trainyard.report.kit import Status
from trainyard.storage import (
    EXPIRY_SECONDS,
    Files,
    Lease,
    mapping,
    newest,
    real,
    time_ledger,
    words,
)
from trainyard.tasks import TASKS, own_headline

if TYPE_CHECKING:
    from trainyard.report.dashboard.sweeps import Sweep

DRIVER_GONE = "its driver is gone; the same command goes on from the last checkpoint"
ENDED: tuple[Status, ...] = ("finished", "pruned", "diverged", "failed")
_SECRET = re.compile(
    r"(?i)(://)[^/@\s]+(?=@)|\bhf_[a-z0-9]{16,}|\b(\w*(?:token|password|secret|api_?key)\w*[\"']?\s*[=:]\s*)\S+"
)


def without_secrets(text: str) -> str:
    """`text` with passwords in addresses, access tokens and the like struck out."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or ''}[hidden]", text)


def known(status: Any) -> Status:
    """A status that pages have a mark for."""
    return cast("Status", status) if status in get_args(Status) else "unknown"


@dataclass(frozen=True)
class Evaluation:
    """The headline score after `step` steps, with its 95 % interval where one is known."""

    step: int
    score: float
    low: float | None = None
    high: float | None = None


class Run:
    """One run folder: a run of its own, a trial, or a run that confirms one."""

    def __init__(self, files: Files, path: Path, key: str, sweep: "Sweep | None" = None) -> None:
        self.path, self.key, self.sweep, self.name = path, key, sweep, path.name
        self._files = files
        self.record, fault = files.json(path / "run.json")
        decided, trial_fault = files.json(path / "trial.json")
        self.trial = mapping(self.record.get("trial")) or decided
        self.progress, _ = files.json(path / "progress.json")
        self.problems = [fault for fault in (fault, trial_fault) if fault]
        self.config = mapping(self.record.get("config"))
        self.result = mapping(self.record.get("result"))
        self.hyperparameters = mapping(self.trial.get("hyperparameters"))

    @cached_property
    def status(self) -> Status:
        """As run.json says; "stopped" for one whose driver was lost, "waiting" before its start."""
        status = self.record.get("status")
        if status == "running" and self.is_lost:
            return "stopped"
        if not self.record and self.trial and not self.problems:
            return "waiting"
        return known(status)

    @property
    def has_ended(self) -> bool:
        """Whether it is never run again; a stretch of a population that came to its exchange is not."""
        stretch = real(self.trial.get("stretch"))
        made = real(self.record.get("trial_evaluations"))
        return self.status in ENDED or (
            stretch is not None and made is not None and made >= stretch
        )

    @cached_property
    def is_lost(self) -> bool:
        """Whether nobody has given a sign of life for longer than a lease lasts."""
        signs = [self.path / name for name in (Lease.NAME, "progress.json", "run.json")]
        signs += [] if self.sweep is None else [self.sweep.path / Lease.NAME]
        return time.time() - newest(*signs) > EXPIRY_SECONDS

    @cached_property
    def reason(self) -> str:
        """Why it ended as it did, in a sentence; empty when there is nothing to say."""
        if self.record.get("status") == "running" and self.is_lost:
            return DRIVER_GONE
        return without_secrets(words(self.record.get("reason") or ""))

    @cached_property
    def task(self) -> str:
        """Name of the task."""
        return words(self.result.get("task") or self.config.get("task") or "")

    @property
    def started(self) -> float | None:
        """Seconds since 1970."""
        return instant(self.record.get("started"))

    @property
    def ended(self) -> float | None:
        """Seconds since 1970; of runs that do not say, when their record was last written."""
        if self.status in ("running", "waiting"):
            return None
        return instant(self.record.get("ended")) or newest(self.path / "run.json") or None

    @cached_property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """The lines of metrics.jsonl."""
        found, wrong = self._files.lines(self.path / "metrics.jsonl")
        if wrong and wrong not in self.problems:
            self.problems.append(wrong)
        return [line for line in found if _whole(line.get("step")) is not None]

    @cached_property
    def metric(self) -> str:
        """Name of the headline metric; empty before the first evaluation of own data."""
        if self.sweep is not None and self.sweep.metric:
            return self.sweep.metric
        if self.task in TASKS:
            return TASKS[self.task].score
        first = next((line for line in self.lines if "split" in line), {})
        return own_headline(mapping(first.get("metrics")))

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """One for each evaluated step: the mean over its splits, an interval if it has one split."""
        steps: dict[int, list[Mapping[str, Any]]] = {}
        for line in self.lines:
            if "split" in line:
                steps.setdefault(line["step"], []).append(line)
        found = []
        for step, lines in steps.items():
            scores = [real(mapping(line.get("metrics")).get(self.metric)) for line in lines]
            finite = [score for score in scores if score is not None]
            if len(finite) < len(scores):
                continue
            low, high = pair(mapping(lines[0].get("intervals")).get(self.metric))
            if len(lines) > 1:
                low = high = None
            found.append(Evaluation(step, sum(finite) / len(finite), low, high))
        return found

    @cached_property
    def best(self) -> Evaluation | None:
        """The best evaluation, also of a run that is not at its end."""
        score = real(self.result.get("score"))
        if score is not None:  # metrics.jsonl need not be read
            spans = list(mapping(self.result.get("intervals")).values())
            low, high = (
                pair(mapping(spans[0]).get(self.metric)) if len(spans) == 1 else (None, None)
            )
            return Evaluation(_whole(self.result.get("best_step")) or 0, score, low, high)
        finite = [e for e in self.evaluations if e.score == e.score]
        if finite:
            return max(finite, key=lambda e: (e.score, -e.step))
        score = real(self.record.get("trial_score"))
        return None if score is None else Evaluation(self.steps or 0, score)

    @property
    def steps(self) -> int | None:
        """Optimizer steps made."""
        return _whole(self.progress.get("step")) or _whole(self.result.get("steps"))

    @property
    def last_step(self) -> int | None:
        """Optimizer steps of the whole run."""
        return _whole(self.progress.get("last_step")) or _whole(self.result.get("steps"))

    @cached_property
    def ledger(self) -> dict[str, float]:
        """Seconds by account."""
        driver, worker = mapping(self.record.get("seconds")), mapping(self.progress.get("seconds"))
        return time_ledger(
            {
                "seconds": _reals(driver),
                "startup_seconds": real(self.record.get("startup_seconds")),
            },
            {"seconds": _reals(worker)},
        )

    @property
    def seconds(self) -> float | None:
        """Wall clock over all attempts: as accounted for, else from start to end."""
        if self.ledger:
            return sum(self.ledger.values())
        if self.started is None:
            return None
        return max((self.ended or time.time()) - self.started, 0.0)

    def error(self) -> str:
        """The end of error.txt."""
        return without_secrets(self._files.text(self.path / "error.txt"))


def instant(value: Any) -> float | None:
    """A time as records have it (UTC, "2026-01-31T12:00:00Z") in seconds since 1970, else None."""
    try:
        return float(timegm(time.strptime(value, "%Y-%m-%dT%H:%M:%SZ")))
    except (TypeError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def pair(value: Any) -> tuple[float | None, float | None]:
    """Both ends of an interval, where there is one."""
    if isinstance(value, list) and len(value) == 2:
        return real(value[0]), real(value[1])
    return None, None


def _reals(value: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(found) for name, found in value.items() if real(found) is not None}
