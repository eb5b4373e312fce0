"""Population-based training (Jaderberg et al. 2017) in stretches, each of them a trial.

A member trains from one exchange to the next as one trial, with a run folder of its own that begins
with its parent's checkpoint. When all members have come to the exchange, the worst take over the
checkpoint and the hyperparameters of one of the best, changed a little. What comes next is a function
of the folders, so a killed population goes on as any sweep does.
"""

import shutil
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from trainyard.errors import UserError
from trainyard.storage import CheckpointStore, RunFolder, TrialRecord, TrialSpec, link_tree
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.search import Point, rank, seed_of, suggest
from trainyard.tuning.space import Space

CHANGEABLE = ("learning_rate", "weight_decay", "max_grad_norm")
"""What can change in mid-training: the rest decides the batches, the model or the schedule."""

QUANTILE = 0.25
"""Share of members that is replaced, and that replaces them."""
RESAMPLED = 0.25
"""How often a hyperparameter is drawn anew instead of being changed by one of FACTORS."""
FACTORS = (0.8, 1.2)


def check_population(config: SweepConfig, space: Space) -> None:
    """Refuse what cannot change in mid-training.

    Raises:
        UserError: for a field that is fixed once a run has begun, or a budget in trials.
    """
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


def next_stretch(
    config: SweepConfig, space: Space, history: Sequence[TrialRecord], generations: int
) -> TrialSpec | Literal["later"] | None:
    """The next member's next stretch; "later" while others are on the way to the exchange."""
    index = history[-1].spec.index + 1 if history else 0
    generation, member = divmod(index, config.population)
    if generation >= generations:
        return None
    last = generation == generations - 1
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
        stretch=None if last else config.grace_period,
    )


def _exchange(
    config: SweepConfig, space: Space, before: Sequence[TrialRecord], member: int, index: int
) -> tuple[Point, str]:
    """Exploit and explore: what a member goes on with, and from whose checkpoint."""
    ranked = rank_stretches(before)
    own = next(trial for trial in before if trial.spec.member == member)
    some = max(1, int(len(ranked) * QUANTILE))
    if own not in ranked[-some:] and own.score is not None:
        return dict(own.spec.hyperparameters), own.spec.name
    rng = np.random.default_rng(seed_of(config.seed, "exchange", index))
    donor = ranked[int(rng.integers(some))]
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
    """Best first: those that came to the exchange by score, then those that diverged or failed."""
    failed = {trial.spec.name for trial in stretches if trial.status in ("diverged", "failed")}
    return sorted(rank(stretches), key=lambda trial: trial.spec.name in failed)


def inherit(run: RunFolder, parent: RunFolder) -> None:
    """Let a stretch begin where its parent ended: the same checkpoints, under a second name."""
    if CheckpointStore(run.checkpoints).steps():
        return
    run.checkpoints.mkdir(exist_ok=True)
    for step in CheckpointStore(parent.checkpoints).steps():
        scratch = run.checkpoints / f".inprogress-{step:08d}-inherited"
        shutil.rmtree(scratch, ignore_errors=True)
        link_tree(CheckpointStore(parent.checkpoints).path(step), scratch)
        scratch.rename(CheckpointStore(run.checkpoints).path(step))
    if parent.predictions.is_dir() and not run.predictions.exists():
        link_tree(parent.predictions, run.predictions)
