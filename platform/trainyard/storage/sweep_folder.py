"""The folder of a sweep, and the records of its trials.

sweep.json holds

    kind          "sweep"
    name          the folder's name
    status        "running" (also after its driver was killed), "finished", "stopped" (by request) or
                  "failed"; `reason` explains it in a sentence
    config        every flag of the sweep
    space         {field: "loguniform:1e-06:0.001", ...}
    searcher, scheduler, task, num_trials
    metric        name of the headline metric, the trials' score; a score is higher for better
    started, ended    UTC, "2026-01-31T12:00:00Z"; `seconds` over all attempts at the sweep, and
                  `search_seconds` of them before the confirmation
    resources_per_trial, max_concurrent_trials
    result        when finished: {best_trial, score, hyperparameters, best_config, model}
    test_share    share of the evaluation rows that the search does not see
    verdict       when confirmed: "better", "worse" or "not distinguishable" (winner to default);
                  null when it is withheld
    confirmation  when confirmed: {seeds, verdict,
                  winner:  {trial, hyperparameters, scores, mean, corrected, interval, runs},
                  default: {hyperparameters, scores, mean, corrected, interval, runs},
                  candidates: [{trial, hyperparameters, scores, mean, runs}, ...],
                  difference: {value, low, high}, method, rows: {searched, confirmed}, covers
                  ("rows and seeds", or "rows" with too few seeds), confidence, look, withheld (why there
                  is no verdict, or null)}.
                  `scores` and `mean` are on all evaluation rows; `corrected`, `difference` and the
                  intervals on the confirmation rows. Sweeps of the first version have no `method`:
                  their intervals do not cover the choice among all trials
    looks         comparisons made on the confirmation rows: {candidates, seeds}; `look` counts them

trial.json holds what was decided before the trial ran: {index, name, kind ("search" or
"confirmation"), hyperparameters, and for PBT member, generation, parent, stretch}. A trial's
run.json repeats it as `trial`, with `sweep` (the sweep's name), and has the run's usual fields, with
`status`

    "running", "finished", "stopped" (can be resumed; PBT: reached the exchange), "pruned" (stopped by
    the scheduler), "diverged" (loss or outputs are not numbers) or "failed" (retried by the same
    command); `reason` explains it.

An ended trial also has

    ended                UTC
    trial_score          its best evaluation's score, null when there is none
    trial_evaluations    their number
    startup_seconds      from the scheduler's decision to the first step
    loop_seconds         from there to the end, without waiting for the scheduler

A trial with a trial.json and no run.json is waiting. Each run.json has `config`, and finished ones
`result`.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainyard.errors import UserError
from trainyard.storage.atomic import write_json
from trainyard.storage.folder import JobFolder, RunFolder
from trainyard.storage.lease import Fence

Kind = Literal["search", "confirmation"]

ENDED = ("finished", "pruned", "diverged", "failed")
"""Statuses of a trial that is never run again."""

NEEDED = {"identity", "config", "data_fingerprint"}
"""Keys of sweep.json that resuming a sweep needs."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """The decisions about a trial before it ran; trial.json."""

    index: int
    name: str
    hyperparameters: Mapping[str, Any]
    kind: Kind = "search"
    member: int | None = None
    """PBT: the member of the population that this is a stretch of."""
    generation: int | None = None
    """PBT: number of the stretch, from 0."""
    parent: str | None = None
    """PBT: the trial whose last checkpoint it starts from."""
    stretch: int | None = None
    """PBT: evaluations after which it stops for the exchange; None for the last stretch."""

    def is_over(self, evaluations: int) -> bool:
        return self.stretch is not None and evaluations >= self.stretch

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, without fields that do not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """The state of a trial, read from its folder."""

    spec: TrialSpec
    status: str
    score: float | None
    """Best score so far; None where no evaluation gave a number, and for a diverged trial."""
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
        """Return sweep.json; empty when there is none yet.

        Raises:
            UserError: when it is damaged, or the folder is that of a single run.
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
        self.check()
        run = self.run(spec.kind, spec.name)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.path / "trial.json", spec.as_dict())
        return run

    def records(self, kind: Kind = "search") -> list[TrialRecord]:
        """Return all trials (or confirming runs) so far, by index."""
        parent = self.trials if kind == "search" else self.confirmation
        names = [path.parent.name for path in parent.glob("*/trial.json")]
        return sorted(
            (record(self.run(kind, name)) for name in names), key=lambda trial: trial.spec.index
        )

    def check_records(self) -> None:
        """Read everything that resuming the sweep needs.

        Raises:
            DamagedRun: when some of it is damaged.
        """
        for trial in (*self.records(), *self.records("confirmation")):
            trial.run.metrics()


def record(run: RunFolder) -> TrialRecord:
    """Read the state of a trial from its folder.

    Raises:
        DamagedRun: when its trial.json or run.json is damaged.
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
    """Return UTC to the second, in the form of all records."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
