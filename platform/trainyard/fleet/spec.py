"""A run of a fleet, the data that trials share, and the outcome of a run."""

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
"""Maximum seconds to wait for the lease of a run whose last process is dead or about to end."""

VERDICT = "verdict"
"""File in a run folder that tells the run's process that the scheduler has stopped the trial.

Tune stops a process in the same way when the driver fails, which is no reason to prune its trial.
"""

Status = Literal["finished", "stopped", "pruned", "diverged", "failed"]


def tokenization_of(config: TrainConfig) -> tuple[Hashable, ...]:
    """Return the key of a run's tokenized data: the values of TOKENIZATION_FIELDS."""
    return tuple(getattr(config, field) for field in TOKENIZATION_FIELDS)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a fleet.

    A run with a `trial` reads the fleet's shared data and reports each evaluation to the scheduler.
    A run without a trial is an ordinary run of `fit`, which prepares its own data.
    """

    config: TrainConfig
    trial: TrialSpec | None = None
    fence: Fence | None = None
    """Fence of the job's lease: runs end when another driver takes over the job."""

    def __str__(self) -> str:
        return self.config.resolved_run_name

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.storage_path) / str(self), fence=self.fence)

    @property
    def trains_in_process(self) -> bool:
        """True if the run trains in the actor's process, False if in workers of Ray Train."""
        return self.trial is not None and self.config.worker_counts == [1]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Name, task and data of a sweep, sent once to each process that trains its trials."""

    sweep: str
    task: Task
    data: Mapping[tuple[Hashable, ...], PreparedData]
    """Tokenized splits, by the keys of `tokenization_of`."""

    def scores(self, run: RunFolder) -> dict[int, float]:
        """Return the score of each evaluation in a run's metrics.jsonl, by step.

        A score is the mean over the evaluation splits. Steps without all splits are left out.

        Raises:
            DamagedRun: The file is damaged.
        """
        found: dict[int, list[float]] = {}
        for line in run.metrics():
            if "split" in line:
                found.setdefault(line["step"], []).append(line["metrics"][self.task.score])
        folders = next(iter(self.data.values())).folders
        splits = sum(not is_test(name) for name in folders) - 1
        return {step: sum(v) / len(v) for step, v in found.items() if len(v) == splits}


@dataclass(frozen=True)
class Ended:
    """Outcome of a run; `reason` is a sentence that explains a status other than "finished"."""

    status: Status
    reason: str | None = None


def pruned(evaluations: int) -> Ended:
    """Build the outcome of a trial that the scheduler stopped after `evaluations` evaluations."""
    return Ended("pruned", f"stopped by the scheduler at evaluation {evaluations}")


def reason_of(error: UserError, folder: Path) -> str:
    """Return the reason that an ordinary run failed.

    The remedy restarts only this run, where the remedy of `error` would be --fresh for the whole
    job.
    """
    if isinstance(error, DamagedRun | AnotherRun):
        return f"{error.problem}; use rm -r {folder} to start this run anew"
    return str(error)
