"""The folder of a sweep, and the records of its trials.

sweep.json holds

    kind          "sweep"
    name          the folder's name
    status        "running" (also after its driver was killed), "finished", "stopped" (by request) or
                  "failed"; `reason` explains the status
    config        every flag of the sweep
    space         {field: "loguniform:1e-06:0.001", ...}
    searcher, scheduler, task, num_trials
    metric        name of the headline metric, the trials' score; a score is higher for better
    started, ended    UTC, "2026-01-31T12:00:00Z"
    seconds       of all attempts at the sweep; `search_seconds` without the confirmation
    resources_per_trial, max_concurrent_trials
    warnings      sentences about the data; when finished, also about the result
    result        when finished: {best_trial, score, hyperparameters, best_config, model}
    test_share    share of the evaluation rows that the search does not see
    verdict       when confirmed: the winner is "better", "worse" or "not distinguishable" compared
                  with the default; null when withheld
    confirmation  when confirmed: {seeds, verdict,
                  winner:  {trial, hyperparameters, scores, mean, corrected, interval, runs},
                  default: {hyperparameters, scores, mean, corrected, interval, runs},
                  candidates: [{trial, hyperparameters, scores, mean, runs}, ...],
                  difference: {value, low, high}, method, rows: {searched, confirmed}, covers
                  ("rows and seeds", or "rows" with too few seeds), confidence, look, withheld
                  (reason for no verdict, or null)}.
                  `scores` and `mean` are on all evaluation rows; `corrected`, `difference` and the
                  intervals are on the confirmation rows. Sweeps of older versions have no `method`:
                  their intervals do not cover the choice among all trials
    looks         list of comparisons on the confirmation rows, {candidates, seeds}; `look` is the
                  1-based number of the current one

trial.json holds the decisions made before the trial ran: {index, name, kind ("search" or
"confirmation"), hyperparameters, and for PBT member, generation, parent, stretch}. A trial's
run.json repeats these as `trial`, with `sweep` (the sweep's name). It has the usual fields of a
run, and a `status`:

    "running", "finished", "stopped" (can be resumed; PBT: reached the exchange), "pruned" (stopped by
    the scheduler), "diverged" (non-finite loss or outputs) or "failed" (retried by the same
    command); `reason` explains the status.

An ended trial also has

    ended                UTC
    trial_score          score of its best evaluation, null without an evaluation
    trial_evaluations    number of its evaluations
    startup_seconds      from the trial's arrival in its process to the claim of its checkpoints
    loop_seconds         from the claim to the end, without waiting for the scheduler

A trial with a trial.json and no run.json is waiting. Each run.json has `config`, and that of a
finished run also has `result`.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainyard.errors import UserError
from trainyard.storage.atomic import write_json
from trainyard.storage.folder import RunFolder
from trainyard.storage.job_folder import JobFolder
from trainyard.storage.lease import Fence

Kind = Literal["search", "confirmation"]

ENDED = ("finished", "pruned", "diverged", "failed")
"""Statuses of a trial that has ended; only a failed trial is run again, by the same command."""

NEEDED = {"identity", "config", "data_fingerprint"}
"""Keys of sweep.json without which a sweep cannot be resumed."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """Decisions made before a trial runs; the content of trial.json.

    In population-based training (PBT, Jaderberg et al. 2017) a trial is one stretch of a member.
    After each stretch comes the exchange: weak members continue from copies of strong ones.
    """

    index: int
    name: str
    hyperparameters: Mapping[str, Any]
    kind: Kind = "search"
    member: int | None = None
    """PBT: 0-based number of the member in the population."""
    generation: int | None = None
    """PBT: 0-based number of the stretch among those of its member."""
    parent: str | None = None
    """PBT: name of the trial whose last checkpoint this trial starts from."""
    stretch: int | None = None
    """PBT: number of evaluations before the exchange; None for the member's last stretch."""

    def is_over(self, evaluations: int) -> bool:
        """Return whether the stretch ends after this number of evaluations."""
        return self.stretch is not None and evaluations >= self.stretch

    def as_dict(self) -> dict[str, Any]:
        """Return the content of trial.json, without fields that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """State of a trial, read from its folder."""

    spec: TrialSpec
    status: str
    score: float | None
    """Best score so far; None for a diverged trial, or if run.json has no score."""
    evaluations: int
    run: RunFolder

    @property
    def ended(self) -> bool:
        return self.status in ENDED or self.spec.is_over(self.evaluations)


class SweepFolder(JobFolder):
    """Paths and records below `<storage_path>/<sweep name>/`."""

    RECORD = "sweep.json"
    KIND = "sweep"

    def __init__(self, path: Path, *, fence: Fence | None = None) -> None:
        super().__init__(path, fence=fence)
        self.trials = path / "trials"
        self.confirmation = path / "confirmation"
        self.best_config = path / "best.yaml"

    def read(self) -> dict[str, Any]:
        """Return the content of sweep.json; empty before it is first written.

        Raises:
            UserError: The record is damaged, or the folder is that of a single run.
        """
        if (self.path / RunFolder.RECORD).exists():
            raise UserError(
                f"{self.path} is the folder of a single run, not of a sweep; choose another --run-name"
            )
        sweep = super().read()
        if sweep and (sweep.get("kind") != "sweep" or not sweep.keys() >= NEEDED):
            raise self.damaged(self.RECORD)
        return sweep

    def run(self, kind: Kind, name: str) -> RunFolder:
        parent = self.trials if kind == "search" else self.confirmation
        return RunFolder(parent / name, fence=self.fence)

    def add(self, spec: TrialSpec) -> RunFolder:
        """Create the folder of a trial, with its trial.json.

        Raises:
            UserError: `check` fails.
        """
        self.check()
        run = self.run(spec.kind, spec.name)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.path / "trial.json", spec.as_dict())
        return run

    def records(self, kind: Kind = "search") -> list[TrialRecord]:
        """Return all trials of a kind so far, sorted by index.

        Raises:
            DamagedRun: A trial.json or run.json is damaged.
        """
        parent = self.trials if kind == "search" else self.confirmation
        names = [path.parent.name for path in parent.glob("*/trial.json")]
        return sorted(
            (record(self.run(kind, name)) for name in names), key=lambda trial: trial.spec.index
        )

    def check_records(self) -> None:
        """Read the records and metrics of all trials, to find damage before the sweep resumes.

        Raises:
            DamagedRun: A trial.json, run.json or metrics.jsonl is damaged.
        """
        for trial in (*self.records(), *self.records("confirmation")):
            trial.run.metrics()


def record(run: RunFolder) -> TrialRecord:
    """Read the state of a trial from its folder.

    Raises:
        DamagedRun: The trial.json or run.json is damaged.
    """
    try:
        spec = TrialSpec(**run.read_json("trial.json"))
    except TypeError as error:
        raise run.damaged("trial.json") from error
    run_record = run.read()
    status = run_record.get("status", "waiting")
    score = run_record.get("trial_score", run_record.get("result", {}).get("score"))
    return TrialRecord(
        spec=spec,
        status=status,
        score=None if status == "diverged" else score,
        evaluations=run_record.get("trial_evaluations", 0),
        run=run,
    )


def now() -> str:
    """Return the current UTC time as in all records: `2026-01-31T12:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def trained_config(model: Path) -> dict[str, Any]:
    """Return the stored config of the run or sweep that exported the folder `model`.

    The result is empty for a folder without a run or sweep, and for a Hub id.

    Raises:
        DamagedRun: The record next to the folder is damaged.
    """
    for record in (RunFolder.RECORD, SweepFolder.RECORD) if model.is_dir() else ():
        config = JobFolder(model.parent).read_json(record).get("config")
        if isinstance(config, dict):
            return config
    return {}
