"""Schedulers, one class each: early stopping of trials, and choice of the next trial."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from trainyard.errors import UserError
from trainyard.storage import TrialRecord, TrialSpec
from trainyard.tuning.searchers import SEARCHERS, Point, rank, seed_of, suggest
from trainyard.tuning.space import Space

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from trainyard.tuning.config import SweepConfig

DEFAULT_TRIALS = 12
NO_LIMIT = 10**6
"""Evaluations of a trial at ASHA's last rung, which no trial reaches.

Each trial ends after its own number of epochs. Tune would stop a trial at `max_t` reports, before
the work that follows its last evaluation.
"""

CHANGEABLE = ("learning_rate", "weight_decay", "max_grad_norm")
"""Fields that can change in mid-training: no batch, model or schedule depends on them."""
QUANTILE = 0.25
"""Share of members that are replaced, and share of the best members that replace others."""
RESAMPLED = 0.25
"""Probability that a value from a range is drawn again instead of multiplied by one of FACTORS.

A value from a list is always drawn again.
"""
FACTORS = (0.8, 1.2)


class Scheduler:
    """Base class of schedulers; itself the one without early stopping (fifo)."""

    rejudges = False
    """True if ended trials report again after a resume, for comparison with new trials."""
    retries_failed = True
    """True if the same command trains failed trials again."""

    def check_flags(self, config: "SweepConfig") -> None:
        """Raise UserError for flags that do not fit the scheduler."""

    def check_space(self, config: "SweepConfig", space: Space) -> None:
        """Raise UserError for a space that the scheduler cannot search."""

    def budget(self, config: "SweepConfig", space: Space) -> int:
        """Return the number of trials of the search; for a population, the number of members."""
        return config.num_trials or SEARCHERS[config.searcher].size(space) or DEFAULT_TRIALS

    def next_trial(
        self,
        config: "SweepConfig",
        space: Space,
        history: Sequence[TrialRecord],
        rows: int,  # noqa: ARG002
    ) -> TrialSpec | Literal["later"] | None:
        """Choose the next trial as a function of the flags and the trials so far.

        Args:
            config: Flags of the sweep.
            space: Search space.
            history: Trials so far, by index.
            rows: Number of training rows.

        Returns:
            The next trial, "later" if it depends on trials that still run, or None after the last.
        """
        index = history[-1].spec.index + 1 if history else 0
        if index >= self.budget(config, space):
            return None
        point = suggest(config.searcher, space, config.base, index, history)
        if point is None:
            return None
        return TrialSpec(index=index, name=f"trial-{index:04d}", hyperparameters=point)

    def tune_scheduler(self, config: "SweepConfig") -> "TrialScheduler":  # noqa: ARG002
        """Build the scheduler of Ray Tune, whose unit of time is the evaluation."""
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()


class SuccessiveHalving(Scheduler):
    """Stop the worse trials at each rung: asynchronous successive halving (Li et al. 2020)."""

    rejudges = True

    def tune_scheduler(self, config: "SweepConfig") -> "TrialScheduler":
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr="evaluation",
            grace_period=config.grace_period,
            reduction_factor=config.reduction_factor,
            max_t=NO_LIMIT,
        )


class Population(Scheduler):
    """Population-based training (Jaderberg et al. 2017) in stretches, each of them a trial.

    A member trains from one exchange to the next as one trial, which starts from its parent's
    checkpoint. When all members have reached the exchange, each of the worst continues from a
    checkpoint of one of the best, with slightly changed hyperparameters. The next stretch is a
    function of the run folders, so a killed population resumes like any sweep.
    """

    retries_failed = False

    def check_flags(self, config: "SweepConfig") -> None:
        if config.worker_counts != [1]:
            raise UserError(
                f"--scheduler pbt pauses trials in their process, which --num-workers "
                f"{config.num_workers} cannot; use --num-workers 1, or --scheduler asha"
            )
        if config.searcher != "random":
            raise UserError(
                f"--scheduler pbt chooses its own points; drop --searcher {config.searcher}"
            )
        if config.early_stopping_patience is not None:
            raise UserError(
                "--scheduler pbt continues each member from its last checkpoint, which a member that "
                "stopped early does not have; drop --early-stopping-patience, or use --scheduler asha"
            )

    def check_space(self, config: "SweepConfig", space: Space) -> None:
        fixed = [field for field in space if field not in CHANGEABLE]
        if fixed:
            raise UserError(
                f"--scheduler pbt changes hyperparameters in mid-training, which {fixed[0]} cannot; "
                f"search {', '.join(CHANGEABLE)}, or use --scheduler asha"
            )
        if config.num_trials is not None:
            raise UserError(
                f"--scheduler pbt trains --population {config.population} members to their end; drop "
                f"--num-trials {config.num_trials}"
            )

    def budget(self, config: "SweepConfig", space: Space) -> int:  # noqa: ARG002
        return config.population

    def next_trial(
        self, config: "SweepConfig", space: Space, history: Sequence[TrialRecord], rows: int
    ) -> TrialSpec | Literal["later"] | None:
        steps_per_epoch = -(-rows // config.train_batch_size)
        last_step = config.max_steps or config.num_train_epochs * steps_per_epoch
        evaluations = -(-last_step // (config.eval_steps or steps_per_epoch))
        return next_stretch(config, space, history, -(-evaluations // config.grace_period))


def next_stretch(
    config: "SweepConfig", space: Space, history: Sequence[TrialRecord], generations: int
) -> TrialSpec | Literal["later"] | None:
    """Return the next stretch of a population as a trial.

    Args:
        config: Flags of the sweep.
        space: Search space.
        history: Stretches so far, by index.
        generations: Number of stretches of each member.

    Returns:
        The trial, "later" if members still train toward the exchange, or None after the last
        stretch.
    """
    index = history[-1].spec.index + 1 if history else 0
    generation, member = divmod(index, config.population)
    if generation >= generations:
        return None
    point: Point | None
    if generation == 0:
        point, parent = suggest("random", space, config.base, index, ()), None
    else:
        before = [trial for trial in history if trial.spec.generation == generation - 1]
        if not all(trial.ended for trial in before):
            return "later"
        point, parent = _exchange(config, space, before, member, index)
    return TrialSpec(
        index=index,
        name=f"trial-{index:04d}",
        hyperparameters=point or {},
        member=member,
        generation=generation,
        parent=parent,
        stretch=None if generation == generations - 1 else config.grace_period,
    )


def _exchange(
    config: "SweepConfig", space: Space, before: Sequence[TrialRecord], member: int, index: int
) -> tuple[Point, str]:
    """Return a member's next hyperparameters and the trial whose checkpoint it continues from."""
    ranked = rank_stretches(before)
    own = next(trial for trial in before if trial.spec.member == member)
    replaced = max(1, int(len(ranked) * QUANTILE))
    if own not in ranked[-replaced:] and own.score is not None:
        return dict(own.spec.hyperparameters), own.spec.name
    import numpy as np  # here: --help imports this module without numpy

    rng = np.random.default_rng(seed_of(config.seed, "exchange", index))
    donor = ranked[int(rng.integers(replaced))]
    drawn = suggest("random", space, config.base, index, ()) or {}
    point: dict[str, Any] = {}
    for field, domain in space.items():
        value = donor.spec.hyperparameters[field]
        if domain.values or rng.random() < RESAMPLED:
            point[field] = drawn[field]
        else:
            point[field] = float(np.clip(value * rng.choice(FACTORS), domain.low, domain.high))
    return point, donor.spec.name


def rank_stretches(stretches: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Sort stretches by score, best first; diverged and failed stretches come last."""
    failed = {trial.spec.name for trial in stretches if trial.status in ("diverged", "failed")}
    return sorted(rank(stretches), key=lambda trial: trial.spec.name in failed)


SCHEDULERS: dict[str, Scheduler] = {
    "fifo": Scheduler(),
    "asha": SuccessiveHalving(),
    "pbt": Population(),
}
