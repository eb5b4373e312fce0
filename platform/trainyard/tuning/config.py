"""Flags of a sweep: the flags of a run, search space, searcher, scheduler and budget."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import tyro

from trainyard.config import PLACE_FIELDS, TrainConfig
from trainyard.errors import UserError
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.searchers import SEARCHERS
from trainyard.tuning.space import fit_micro_batch

if TYPE_CHECKING:
    SearcherName: TypeAlias = str
    SchedulerName: TypeAlias = str
else:  # choices for the command line
    SearcherName, SchedulerName = Literal[tuple(SEARCHERS)], Literal[tuple(SCHEDULERS)]

BUDGET_FIELDS = (
    "num_trials", "max_seconds", "max_concurrent_trials", "confirm_top", "confirm_seeds",
)  # fmt: skip
"""Fields that set the amount of work. A changed value extends a finished sweep."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainConfig):
    """Search hyperparameters, confirm the best with fresh seeds, and state the confidence in the winner.

    The flags of `trainyard train` give the default recipe. It is trial 0, and the winner is compared with
    it. The same command resumes a sweep that was interrupted.
    """

    not_in_identity: ClassVar[tuple[str, ...]] = (*PLACE_FIELDS, *BUDGET_FIELDS)

    space: str = "default"
    """Named search space: default, wide, bert or seed."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Domains of fields, on top of the space: learning_rate=loguniform:1e-6:1e-3,
    num_train_epochs=randint:2:5, train_batch_size=choice:16,32, weight_decay=0.01. A searched batch that is
    smaller than the micro-batch reduces it."""
    searcher: SearcherName = "random"
    """Choice of the next trial: random, every point of a grid, or Optuna's TPE."""
    scheduler: SchedulerName = "asha"
    """Early stopping: none (fifo), asynchronous successive halving (asha), or population-based training,
    where the worst members take over the weights of the best (pbt)."""
    num_trials: int | None = None
    """Trials to run. Default: 12, or the whole grid."""
    max_seconds: float | None = None
    """Stop searching after this time. Running trials are saved; finished trials are confirmed."""
    grace_period: int = 1
    """asha: evaluations before a trial can be stopped. pbt: evaluations between exchanges."""
    reduction_factor: float = 3
    """asha: one in this many trials at a rung continues."""
    population: int = 4
    """pbt: members that train at the same time, all to their end; leave out num_trials."""
    max_concurrent_trials: int | None = None
    """Maximum number of trials at the same time. Default: all that the cluster holds."""
    confirm_top: int = 2
    """Number of the best configurations that are run again with fresh seeds."""
    confirm_seeds: int = 3
    """Fresh seeds for each of them and for the default recipe. With 1 or 2 the interval covers rows
    only and there is no verdict; 0 leaves the confirmation out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UserError(f"--max-seconds is {self.max_seconds:g}; it must be more than 0")
        if not self.reduction_factor > 1:
            raise UserError(
                f"--reduction-factor is {self.reduction_factor:g}; it must be more than 1"
            )
        if len(self.worker_counts) != 1:
            raise UserError(
                f"--num-workers {self.num_workers} is a range, which a trial cannot have; give a number"
            )
        if self.label_thresholds != "0.5":
            raise UserError(
                f"--label-thresholds {self.label_thresholds} is not for sweeps, which compare trials "
                "at 0.5; leave it out, and train the winner's recipe with it"
            )
        SCHEDULERS[self.scheduler].check_flags(self)

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(item for group in self.set for item in group)

    @property
    def base(self) -> TrainConfig:
        return self.train_config({})

    def train_config(self, hyperparameters: Mapping[str, Any], **place: Any) -> TrainConfig:
        """Build the config of a trial.

        All trials hold out the same rows, whatever their seeds. `fit_micro_batch` sets the
        micro-batch.

        Args:
            hyperparameters: Fields that the trial sets.
            place: Fields of the trial's folder and resources.
        """
        own = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        fixed = {
            "data_seed": self.held_out_seed, "fresh": False, "run_name": None, "push_to_hub": None,
        }  # fmt: skip
        searched = fit_micro_batch(self.per_device_train_batch_size, hyperparameters)
        return TrainConfig(**{**own, **fixed, **searched, **place})

    @property
    def resolved_run_name(self) -> str:
        return self.name_after(f"{self.source}-sweep")
