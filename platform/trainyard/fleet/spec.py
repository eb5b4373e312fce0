"""A run of a fleet, what the runs have in common, and the outcome of one."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainyard.config import TOKENIZATION_FIELDS, TrainConfig
from trainyard.data import PreparedData, is_test
from trainyard.errors import DamagedRun, UserError
from trainyard.storage import EXPIRY_SECONDS, Fence, RunFolder, TrialSpec
from trainyard.tasks import Task
from trainyard.training import AnotherRun

TAKEOVER_SECONDS = 2 * EXPIRY_SECONDS
"""Maximum wait for the lease of a run whose last process is dead or about to end."""

Status = Literal["finished", "stopped", "pruned", "diverged", "failed"]


def tokenization_of(config: TrainConfig) -> tuple[Hashable, ...]:
    """Key of the tokenized data that a run reads."""
    return tuple(getattr(config, field) for field in TOKENIZATION_FIELDS)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a fleet.

    A run with a `trial` reads the fleet's shared data, reports each evaluation and waits for the
    scheduler. One without is an ordinary run of `fit`, which prepares its own data.
    """

    config: TrainConfig
    trial: TrialSpec | None = None
    fence: Fence | None = None
    """Of the job's lease: runs of a job that was taken over end."""

    def __str__(self) -> str:
        return self.config.resolved_run_name

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.storage_path) / str(self), fence=self.fence)

    @property
    def trains_in_process(self) -> bool:
        """The run trains in the process of the fleet, and not in workers of Ray Train."""
        return self.trial is not None and self.config.worker_counts == [1]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Data and task of the trials of a sweep; sent to each process once."""

    sweep: str
    task: Task
    data: Mapping[tuple[Hashable, ...], PreparedData]
    """Tokenized splits, by `tokenization_of` the runs."""

    def scores(self, run: RunFolder) -> dict[int, float]:
        """Score of each evaluation in a run's metrics.jsonl, by step: the mean over its splits."""
        found: dict[int, list[float]] = {}
        for line in run.metrics():
            if "split" in line:
                found.setdefault(line["step"], []).append(line["metrics"][self.task.score])
        folders = next(iter(self.data.values())).folders
        splits = sum(not is_test(name) for name in folders) - 1
        return {step: sum(v) / len(v) for step, v in found.items() if len(v) == splits}


@dataclass(frozen=True)
class Ended:
    """Outcome of a run; `reason` explains every status but "finished"."""

    status: Status
    reason: str | None = None


def pruned(evaluations: int) -> Ended:
    """Outcome of a trial that the scheduler stopped."""
    return Ended("pruned", f"stopped by the scheduler at evaluation {evaluations}")


def reason_of(error: UserError, folder: Path) -> str:
    """Reason that an ordinary run failed, with a remedy that does not need --fresh."""
    if isinstance(error, DamagedRun | AnotherRun):
        return f"{error.problem}; use rm -r {folder} to start this run anew"
    return str(error)
