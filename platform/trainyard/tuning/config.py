"""The flags of a sweep: those of a run, and what to search, how, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import tyro

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.flags import PLACE_FIELDS

Searcher = Literal["random", "grid", "optuna"]
Scheduler = Literal["fifo", "asha", "pbt"]

BUDGET_FIELDS = (
    "num_trials", "max_seconds", "max_concurrent_trials", "confirm_top", "confirm_seeds",
)  # fmt: skip
"""How much is done. A sweep that is finished can be given more by the same command."""

DEFAULT_TRIALS = 12


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainConfig):
    """Search the hyperparameters of a run, confirm the best with fresh seeds, and say how sure it is.

    The flags of jobs/train.py give the default recipe, which is trial 0 and what the winner is
    compared with. The same command goes on with a sweep that was interrupted.
    """

    not_in_identity: ClassVar[tuple[str, ...]] = (*PLACE_FIELDS, *BUDGET_FIELDS)

    space: str = "default"
    """Named search space: default, wide, bert or seed."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Domains of fields, on top of the space: learning_rate=loguniform:1e-6:1e-3,
    num_train_epochs=randint:2:5, train_batch_size=choice:16,32, weight_decay=0.01."""
    searcher: Searcher = "random"
    """How the next trial is chosen: random, every point of a grid, or Optuna's TPE."""
    scheduler: Scheduler = "asha"
    """Who is stopped early: nobody (fifo), the worse at each rung (asha), or the population's worst,
    which take over the weights of its best (pbt)."""
    num_trials: int | None = None
    """Trials to run. Default: 12, or the whole grid."""
    max_seconds: float | None = None
    """Stop searching after this time; trials that run are saved, and confirmed is what finished."""
    grace_period: int = 1
    """asha: evaluations before a trial can be stopped. pbt: evaluations between exchanges."""
    reduction_factor: float = 3
    """asha: of the trials at a rung, one in this many goes on."""
    population: int = 4
    """pbt: members that train side by side, all to their end; leave out num_trials."""
    max_concurrent_trials: int | None = None
    """At most this many at once. Default: as many as the cluster holds."""
    confirm_top: int = 2
    """How many of the best configurations are run again with fresh seeds."""
    confirm_seeds: int = 3
    """Fresh seeds for each of them and for the default recipe; 0 leaves out the verdict."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is started."""
        super().__post_init__()
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UserError(f"--max-seconds is {self.max_seconds:g}; it must be more than 0")
        if not self.reduction_factor > 1:
            raise UserError(
                f"--reduction-factor is {self.reduction_factor:g}; it must be more than 1"
            )
        if self.confirm_seeds == 1 or self.confirm_seeds < 0:
            raise UserError(
                f"--confirm-seeds is {self.confirm_seeds}; one seed cannot tell a recipe from luck: "
                "use at least 2, or 0 to leave out the verdict"
            )
        if len(self.worker_counts) != 1:
            raise UserError(
                f"--num-workers {self.num_workers} is a range, which a trial cannot have; give a number"
            )
        if self.scheduler == "pbt" and self.worker_counts != [1]:
            raise UserError(
                f"--scheduler pbt pauses trials in their process, which --num-workers "
                f"{self.num_workers} cannot; use --num-workers 1, or --scheduler asha"
            )
        if self.scheduler == "pbt" and self.searcher != "random":
            raise UserError(
                f"--scheduler pbt chooses its own points; drop --searcher {self.searcher}"
            )

    @property
    def overrides(self) -> tuple[str, ...]:
        """All that `--set` gave, in order."""
        return tuple(item for group in self.set for item in group)

    @property
    def base(self) -> TrainConfig:
        """The default recipe."""
        return self.train_config({})

    def train_config(self, hyperparameters: Mapping[str, Any], **place: Any) -> TrainConfig:
        """The run of a trial; every trial holds out the same rows, whatever its seed."""
        own = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        fixed = {"data_seed": self.held_out_seed, "fresh": False, "run_name": None}
        return TrainConfig(**{**own, **fixed, **hyperparameters, **place})

    @property
    def resolved_run_name(self) -> str:
        """`run_name`, or the data and a hash."""
        return self.name_after(f"{self.source}-sweep")
