"""The folder of a sweep: the record that people read, and that a killed sweep goes on from.

    <storage_path>/<sweep name>/
      sweep.json              see below
      trials/<trial name>/    a run folder each (see `run_folder`), and its trial.json
      confirmation/<name>/    the runs that confirm: run folders too
      best.yaml               for `jobs/train.py --config`
      model/                  the winner's, for plain transformers
      trials.csv trials.json  one row per trial
      tensorboard/            hyperparameters and scores (HParams)

sweep.json holds

    kind          "sweep"
    name          the folder's name
    status        "running", "finished", "stopped" (asked to, or a driver that was killed leaves
                  "running") or "failed"; `reason` says why in a sentence where there is one
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

    "running", "finished", "stopped" (can go on; of PBT: came to the exchange), "pruned" (stopped by
    the scheduler), "diverged" (loss or answers are no numbers) or "failed" (tried again by the same
    command); `reason` says why where there is one.

and, once it ended, `ended`, `trial_score` (its best evaluation's score, null when there is none),
`trial_evaluations`, `startup_seconds` (from the scheduler's decision to the first step) and
`loop_seconds` (from there to the end, without waiting for the scheduler). A
trial with a trial.json and no run.json is waiting. Each run.json has `config`, and finished ones
`result`.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainyard.errors import UserError
from trainyard.storage.atomic import write_json
from trainyard.storage.run_folder import RunFolder

ENDED = ("finished", "pruned", "diverged", "failed")
"""Statuses of a trial that is never run again."""

NEEDED = {"identity", "config", "data_fingerprint"}
"""What sweep.json must hold for a sweep to go on."""


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What was decided about a trial before it ran; trial.json."""

    index: int
    name: str
    hyperparameters: Mapping[str, Any]
    kind: Literal["search", "confirmation"] = "search"
    member: int | None = None
    """PBT: which member of the population this is a stretch of."""
    generation: int | None = None
    """PBT: which stretch, from 0."""
    parent: str | None = None
    """PBT: the trial whose last checkpoint it starts from."""
    stretch: int | None = None
    """PBT: evaluations after which it stops for the exchange; the last stretch ends by itself."""

    def is_over(self, evaluations: int) -> bool:
        """Whether a stretch has come to its exchange."""
        return self.stretch is not None and evaluations >= self.stretch

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as its folder tells it."""

    spec: TrialSpec
    status: str
    score: float | None
    """Best score so far; None where no evaluation gave a number, and where it diverged in the end."""
    evaluations: int
    run: RunFolder

    @property
    def ended(self) -> bool:
        """Whether it is never run again."""
        return self.status in ENDED or self.spec.is_over(self.evaluations)


class SweepFolder:
    """Paths and records below `<storage_path>/<sweep name>/`. Creating one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials = path / "trials"
        self.confirmation = path / "confirmation"
        self.model = path / "model"
        self.best_config = path / "best.yaml"
        self.tensorboard = path / "tensorboard"
        self.stop_request = path / "stop-request"

    def read(self) -> dict[str, Any]:
        """What sweep.json says; empty when there is none yet.

        Raises:
            UserError: when it is damaged, or the folder is that of a single run.
        """
        if (self.path / "run.json").exists():
            raise UserError(
                f"{self.path} is the folder of a single run, not of a sweep; choose another --run-name"
            )
        found = _read_json(self.path / "sweep.json")
        if found and (found.get("kind") != "sweep" or not found.keys() >= NEEDED):
            raise _damaged(self.path / "sweep.json")
        return found

    def update(self, **fields: Any) -> None:
        """Change fields of sweep.json."""
        write_json(self.path / "sweep.json", {**self.read(), **fields})

    def add(self, spec: TrialSpec) -> RunFolder:
        """Make the folder of a trial, with what was decided about it."""
        parent = self.trials if spec.kind == "search" else self.confirmation
        run = RunFolder(parent / spec.name)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.path / "trial.json", spec.as_dict())
        return run

    def records(self, kind: Literal["search", "confirmation"] = "search") -> list[TrialRecord]:
        """All trials (or confirming runs) so far, by index."""
        parent = self.trials if kind == "search" else self.confirmation
        found = [
            record(path.parent) for path in parent.glob("*/trial.json") if path.parent.is_dir()
        ]
        return sorted(found, key=lambda trial: trial.spec.index)

    def check(self) -> None:
        """Read all that a sweep goes on from.

        Raises:
            UserError: when some of it is damaged.
        """
        for trial in (*self.records(), *self.records("confirmation")):
            trial.run.metrics()


def record(path: Path) -> TrialRecord:
    """What the folder of one trial tells.

    Raises:
        UserError: when its trial.json or run.json is damaged.
    """
    fields = _read_json(path / "trial.json")
    try:
        spec = TrialSpec(**fields)
    except TypeError as error:
        raise _damaged(path / "trial.json") from error
    run = RunFolder(path)
    known = run.read()
    status = known.get("status", "waiting")
    score = known.get("trial_score", known.get("result", {}).get("score"))
    return TrialRecord(
        spec=spec,
        status=status,
        score=None if status == "diverged" else score,
        evaluations=known.get("trial_evaluations", 0),
        run=run,
    )


def now() -> str:
    """UTC, to the second, as all records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def link_tree(source: Path, target: Path) -> None:
    """The same files under a second name, where the file system can: weights are large."""
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, IsADirectoryError) as error:
        raise _damaged(path) from error
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged; use --fresh to start this sweep anew, or another --run-name"
    )
