"""Runs, sweeps and reports below a storage path, read from their folders.

The content of a folder is not trusted: it may be half-written, damaged, or from another version.
"""

import re
import time
from calendar import timegm
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

from trainyard.metrics import METRICS
from trainyard.report.kit import Status
from trainyard.storage import (
    EXPIRY_SECONDS,
    LEASE,
    Files,
    folders,
    mapping,
    newest,
    real,
    time_ledger,
    words,
)
from trainyard.tasks import TASKS, own_headline

DRIVER_GONE = "its driver is gone; the same command resumes it from the last checkpoint"
SWEEP_DRIVER_GONE = "its driver is gone; the same command resumes it"
DEFAULT = "default"
"""Value of `best_trial` for a sweep whose result is the default recipe."""
ENDED: tuple[Status, ...] = ("finished", "pruned", "diverged", "failed")
"""States in which a run has ended."""
_SECRET = re.compile(
    r"(?i)(://)[^/@\s]+(?=@)|\bhf_[a-z0-9]{16,}|\b(\w*(?:token|password|secret|api_?key)\w*[\"']?\s*[=:]\s*)\S+"
)


def without_secrets(text: str) -> str:
    """Replace passwords in URLs, access tokens and similar secrets with "[hidden]"."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or ''}[hidden]", text)


@dataclass(frozen=True)
class Evaluation:
    """Headline score after `step` optimizer steps.

    `low` and `high` are its 95 % interval, or None.
    """

    step: int
    score: float
    low: float | None = None
    high: float | None = None


class Job:
    """Folder of one job: its record, state and times.

    Damaged files raise no error; they are listed in `problems`, one sentence each.
    """

    lost_reason = DRIVER_GONE

    def __init__(self, files: Files, path: Path, key: str, file: str) -> None:
        self.path, self.key, self.name = path, key, path.name
        self._files = files
        self.record, fault = files.json(path / file)
        self.problems = [fault] if fault else []
        self.config = mapping(self.record.get("config"))

    @property
    def status(self) -> Status:
        """Recorded status; "stopped" if the driver is lost, "unknown" without a valid status."""
        if self.is_lost:
            return "stopped"
        found = self.record.get("status")
        return cast("Status", found) if found in get_args(Status) else "unknown"

    @cached_property
    def is_lost(self) -> bool:
        """Return whether the driver is lost.

        The job is then recorded as running, but none of its files changed for `EXPIRY_SECONDS`.
        """
        return self.record.get("status") == "running" and (
            time.time() - newest(*self._signs()) > EXPIRY_SECONDS
        )

    def _signs(self) -> list[Path]:
        raise NotImplementedError

    @property
    def reason(self) -> str:
        """Reason for the end, in a sentence; empty if none is known."""
        if self.is_lost:
            return self.lost_reason
        return without_secrets(words(self.record.get("reason") or ""))

    @property
    def started(self) -> float | None:
        """Time of the start in seconds since 1970, or None."""
        return instant(self.record.get("started"))

    def _elapsed(self, ended: float | None) -> float | None:
        return None if self.started is None else max((ended or time.time()) - self.started, 0.0)


class Run(Job):
    """Single run, trial of a sweep, or run that confirms a trial."""

    def __init__(self, files: Files, path: Path, key: str, sweep: "Sweep | None" = None) -> None:
        super().__init__(files, path, key, "run.json")
        self.sweep = sweep
        decided, fault = files.json(path / "trial.json")
        self.problems += [fault] if fault else []
        self.trial = mapping(self.record.get("trial")) or decided
        self.progress, _ = files.json(path / "progress.json")
        self.result = mapping(self.record.get("result"))
        self.hyperparameters = mapping(self.trial.get("hyperparameters"))

    @cached_property
    def status(self) -> Status:
        """Recorded status, see `Job.status`; "waiting" for a trial before its start."""
        if not self.record and self.trial and not self.problems:
            return "waiting"
        return super().status

    def _signs(self) -> list[Path]:
        signs = [self.path / name for name in (LEASE, "progress.json", "run.json")]
        return signs if self.sweep is None else [*signs, self.sweep.path / LEASE]

    @property
    def has_ended(self) -> bool:
        """Return whether the run has ended; a stopped run has not, because it can be resumed.

        A trial of population-based training also ends after its `stretch` of evaluations.
        """
        stretch = real(self.trial.get("stretch"))
        made = real(self.record.get("trial_evaluations"))
        return self.status in ENDED or (
            stretch is not None and made is not None and made >= stretch
        )

    @cached_property
    def task(self) -> str:
        return words(self.result.get("task") or self.config.get("task") or "")

    @property
    def data(self) -> str:
        """Name of the data set: as recorded, else of the training file, else the task."""
        if stored := words(self.record.get("data_name") or ""):
            return stored
        file = self.config.get("train_file")
        return Path(file).stem if isinstance(file, str) and file else self.task

    @property
    def model(self) -> str:
        return short_name(self.config.get("model_name_or_path"))

    @property
    def tags(self) -> list[str]:
        found = self.config.get("tags")
        return [words(tag) for tag in found] if isinstance(found, list) else []

    @property
    def ended(self) -> float | None:
        """Time of the end in seconds since 1970; None for a running or waiting run.

        Without a recorded end, it is the time of the last write of run.json.
        """
        if self.status in ("running", "waiting"):
            return None
        return instant(self.record.get("ended")) or newest(self.path / "run.json") or None

    @cached_property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """Entries of metrics.jsonl that have a step."""
        return [
            line for line in self._lines("metrics.jsonl") if _whole(line.get("step")) is not None
        ]

    @property
    def usage(self) -> Sequence[Mapping[str, Any]]:
        """Entries of usage.jsonl: CPU, memory and GPU use over time on the first worker's node."""
        return [row for row in self._lines("usage.jsonl") if real(row.get("seconds")) is not None]

    def _lines(self, name: str) -> Sequence[Mapping[str, Any]]:
        found, wrong = self._files.lines(self.path / name)
        if wrong and wrong not in self.problems:
            self.problems.append(wrong)
        return found

    @cached_property
    def metric(self) -> str:
        """Name of the headline metric; empty before the first evaluation of a user's own data."""
        if self.sweep is not None and self.sweep.metric:
            return self.sweep.metric
        named = self.result.get("score_metric") or self.config.get("metric_for_best_model")
        if isinstance(named, str):
            return named
        if self.task in TASKS:
            return TASKS[self.task].score
        first = next((line for line in self.lines if "split" in line), {})
        return own_headline(mapping(first.get("metrics")))

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations in the order of metrics.jsonl, one per step.

        The score is the mean over the splits. A step with several splits has no interval, and a
        step without the headline metric is left out.
        """
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
        """Best evaluation; None before the first.

        It is the recorded result, else the best in metrics.jsonl, else run.json's `trial_score`.
        Lower is better for errors such as rmse.
        """
        score = real(self.result.get("score"))
        if score is not None:  # metrics.jsonl need not be read
            spans = list(mapping(self.result.get("intervals")).values())
            span = mapping(spans[0]).get(self.metric) if len(spans) == 1 else None
            return Evaluation(_whole(self.result.get("best_step")) or 0, score, *pair(span))
        finite = [e for e in self.evaluations if e.score == e.score]
        if finite:
            sign = 1 if self.metric not in METRICS or METRICS[self.metric].higher_is_better else -1
            return max(finite, key=lambda e: (sign * e.score, -e.step))
        score = real(self.record.get("trial_score"))
        return None if score is None else Evaluation(self.steps or 0, score)

    @property
    def steps(self) -> int | None:
        return _whole(self.progress.get("step")) or _whole(self.result.get("steps"))

    @property
    def last_step(self) -> int | None:
        return _whole(self.progress.get("last_step")) or _whole(self.result.get("steps"))

    @property
    def samples_per_second(self) -> float | None:
        key = "train_samples_per_second"
        return real(self.result.get(key)) or real(self.progress.get(key))

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining seconds of training; None if not running or unknown."""
        rows, speed = real(self.progress.get("rows_per_step")), self.samples_per_second
        if self.status != "running" or not (rows and speed and self.steps and self.last_step):
            return None
        return max(self.last_step - self.steps, 0) * rows / speed

    @cached_property
    def ledger(self) -> dict[str, float]:
        """Seconds of all attempts by account, see `time_ledger`."""
        driver, worker = (
            {name: float(found) for name, found in books.items() if real(found) is not None}
            for books in (
                mapping(self.record.get("seconds")),
                mapping(self.progress.get("seconds")),
            )
        )
        startup = real(self.record.get("startup_seconds"))
        return time_ledger({"seconds": driver, "startup_seconds": startup}, {"seconds": worker})

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds over all attempts, or None.

        They are the sum of the ledger, else the time from start to end.
        """
        return sum(self.ledger.values()) if self.ledger else self._elapsed(self.ended)

    def text(self, name: str) -> str:
        """Return the end of a text file of the run, without secrets; empty if there is none."""
        if (self.path / name).parent.is_symlink():
            return ""
        return without_secrets(self._files.text(self.path / name))


class Sweep(Job):
    """Sweep with its trials and the runs that confirm some of them."""

    lost_reason = SWEEP_DRIVER_GONE

    def __init__(self, files: Files, path: Path, key: str) -> None:
        super().__init__(files, path, key, "sweep.json")
        self.task = words(self.record.get("task") or "")
        self.confirmation = mapping(self.record.get("confirmation"))
        self.winner = mapping(self.confirmation.get("winner"))
        self.default = mapping(self.confirmation.get("default"))
        self.result = mapping(self.record.get("result"))

    @cached_property
    def trials(self) -> list[Run]:
        return self._runs("trials")

    @cached_property
    def confirmations(self) -> list[Run]:
        return self._runs("confirmation")

    def _runs(self, part: str) -> list[Run]:
        found = [
            Run(self._files, self.path / part / name, f"{self.key}/{part}/{name}", self)
            for name in folders(self.path / part)
        ]
        return sorted(found, key=lambda run: (real(run.trial.get("index")) or 0, run.name))

    def _signs(self) -> list[Path]:
        signs = [self.path / name for name in (LEASE, "sweep.json")]
        for part in ("trials", "confirmation"):
            for name in folders(self.path / part):
                signs += [self.path / part / name / file for file in ("progress.json", "run.json")]
        return signs

    @property
    def data(self) -> str:
        """Name of the data set, from the first trial; the task before there is a trial."""
        return self.trials[0].data if self.trials else self.task

    @property
    def model(self) -> str:
        return self.trials[0].model if self.trials else ""

    @property
    def metric(self) -> str:
        metric = self.record.get("metric")
        return metric if isinstance(metric, str) else ""

    @property
    def ended(self) -> float | None:
        return None if self.status == "running" else instant(self.record.get("ended"))

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of the sweep; None before its start.

        For a running sweep, it is the time since the first start, pauses included. Otherwise it is
        the recorded time of all attempts, else the time from start to end.
        """
        recorded = real(self.record.get("seconds"))
        if self.started is None or (recorded is not None and self.status != "running"):
            return recorded
        return self._elapsed(self.ended)

    @property
    def num_trials(self) -> int:
        """Number of trials, including those not started yet."""
        return max(_whole(self.record.get("num_trials")) or 0, len(self.trials))

    @cached_property
    def fields(self) -> list[str]:
        """Names of the hyperparameters, in the order of the search space."""
        names = dict.fromkeys(mapping(self.record.get("space")))
        for trial in self.trials:
            names.update(dict.fromkeys(trial.hyperparameters))
        return list(names)

    @property
    def keeps_default(self) -> bool:
        """Return whether the default recipe is the result, because the winner was worse."""
        return self.result.get("best_trial") == DEFAULT

    @cached_property
    def best(self) -> Run | None:
        """Trial that the sweep chose, else the best so far; None before the first score."""
        for trial in self.trials:
            if trial.name == self.result.get("best_trial"):
                return trial
        scored = [trial for trial in self.trials if trial.best and trial.status != "diverged"]
        return max(scored, key=lambda t: t.best.score if t.best else 0.0, default=None)


@dataclass(frozen=True)
class Report:
    """Folder with a finished page: an evaluation, a data examination or a GLUE suite.

    Attributes:
        path: Folder of the report.
        key: Name of the folder.
        kind: Kind of the report, a value of `REPORTS`.
        record: Content of the JSON file.
        written: Time of the last write, in seconds since 1970.
    """

    path: Path
    key: str
    kind: str
    record: Mapping[str, Any]
    written: float | None

    @property
    def result(self) -> str:
        """Result in a few words: a score, an average or counts of findings; a dash for none."""
        score = real(self.record.get("score"))
        average = real(mapping(self.record.get("average")).get("mean"))
        findings = self.record.get("findings")
        if score is not None:
            return f"{words(self.record.get('score_metric') or 'score')} {score:.4f}"
        if average is not None:
            return f"Average {average:.1f}"
        if isinstance(findings, list):
            # Reports of older releases have only `severity`.
            each = [mapping(finding) for finding in findings]
            levels = [finding.get("level", finding.get("severity")) for finding in each]
            notices = levels.count("notice")
            return f"{len(levels) - notices} severe, {notices} notice{'s' * (notices != 1)}"
        return "–"


REPORTS = {"evaluation.json": "Evaluation", "doctor.json": "Data doctor", "glue.json": "GLUE suite"}
"""File that marks a report's folder -> kind of the report."""


class Yard:
    """Runs, sweeps and reports below one storage path, each by its key.

    To update, create another yard with the same `files`, which cache what was read.
    """

    def __init__(self, storage: Path, files: Files) -> None:
        self.storage = storage
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.reports: dict[str, Report] = {}
        for name in folders(storage.resolve()):  # the storage path itself may be a link
            path = storage / name
            if (path / "sweep.json").is_file():
                self.sweeps[name] = Sweep(files, path, name)
            elif (path / "run.json").is_file():
                self.runs[name] = Run(files, path, name)
            for file, kind in REPORTS.items():
                record, _ = files.json(path / file)
                if record and (path / "report.html").is_file():
                    written = newest(path / file) or None
                    self.reports[name] = Report(path, name, kind, record, written)

    def find(self, key: str) -> Run | Sweep | None:
        """Return a run or sweep by its key, or None.

        A key is `run`, `sweep`, `sweep/trials/run` or `sweep/confirmation/run`. Only names found by
        listing folders match, so no key leads out of the storage path.
        """
        name, _, rest = key.partition("/")
        if not rest:
            return self.sweeps.get(name) or self.runs.get(name)
        if (sweep := self.sweeps.get(name)) is None:
            return None
        return next((r for r in (*sweep.trials, *sweep.confirmations) if r.key == key), None)


def instant(value: Any) -> float | None:
    """Parse a UTC time such as "2026-01-31T12:00:00Z" to seconds since 1970; None if invalid."""
    try:
        return float(timegm(time.strptime(value, "%Y-%m-%dT%H:%M:%SZ")))
    except (TypeError, ValueError):
        return None


def pair(value: Any) -> tuple[float | None, float | None]:
    """Return both numbers of a list of two; None for each value that is not a number."""
    if isinstance(value, list) and len(value) == 2:
        return real(value[0]), real(value[1])
    return None, None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def short_name(model: Any) -> str:
    """Return the short name of a model: from its Hub id, package or run folder; empty for none."""
    name = words(model or "").rstrip("/")
    if name.startswith("package:"):
        return name.removeprefix("package:").partition("/")[0]
    return name.removesuffix("/model").rpartition("/")[2]
