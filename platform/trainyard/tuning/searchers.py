"""Searchers, one class each: choose the next point from the seed and the trials so far.

Searchers store no state, so a killed sweep resumes from the records of its trials alone.
"""

import hashlib
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.storage import TrialRecord
from trainyard.tuning.space import Space

if TYPE_CHECKING:
    import optuna

Point = dict[str, Any]
History = Sequence[TrialRecord]

STARTUP_TRIALS = 6
"""Number of trials with random points before TPE proposes points."""


class Searcher:
    """Random search (Bergstra and Bengio 2012): draw each point independently with Optuna."""

    default_first = True
    """True if trial 0 is the default recipe, provided that the space contains it."""

    def check(self, name: str, space: Space, num_trials: int | None) -> None:  # noqa: ARG002
        """Raise UserError for a space that the searcher, called `name`, cannot search."""
        for field, domain in space.items():
            if domain.kind == "grid":
                raise UserError(
                    f"--set {field}={domain} asks for every point of a grid, which --searcher {name} "
                    f"does not visit; use --searcher grid, or {field}=choice:…"
                )

    def size(self, space: Space) -> int | None:  # noqa: ARG002
        return None

    def point(self, space: Space, seed: int, index: int, history: History) -> Point | None:  # noqa: ARG002
        """Return the hyperparameters of trial `index`; None if all points were used.

        Args:
            space: Search space.
            seed: Seed of this trial's draw.
            index: Number of the trial, from 0.
            history: Trials so far.
        """
        import optuna

        return _ask(space, optuna.samplers.RandomSampler(seed), ())


class Grid(Searcher):
    """Visit every point of a grid once."""

    default_first = False

    def check(self, name: str, space: Space, num_trials: int | None) -> None:  # noqa: ARG002
        size = self.size(space)
        if num_trials is not None and num_trials < size:
            raise UserError(
                f"the grid has {size} points, more than --num-trials {num_trials}; leave out "
                "--num-trials, list fewer values, or use --searcher random"
            )

    def size(self, space: Space) -> int:
        for field, domain in space.items():
            if not domain.values:
                raise UserError(
                    f"--searcher grid cannot visit {field}={domain}; list its values, as in "
                    f"--set {field}=grid:{domain.low:g},{domain.high:g}, or use --space bert"
                )
        return math.prod(len(domain.values) for domain in space.values())

    def point(self, space: Space, seed: int, index: int, history: History) -> Point | None:  # noqa: ARG002
        points = itertools.product(*(domain.values for domain in space.values()))
        values = next(itertools.islice(points, index, None), None)
        return None if values is None else dict(zip(space, values, strict=True))


class ParzenEstimator(Searcher):
    """Tree-structured Parzen estimator of Optuna (Bergstra et al. 2011; Falkner et al. 2018)."""

    def point(self, space: Space, seed: int, index: int, history: History) -> Point:  # noqa: ARG002
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True
            )
        return _ask(space, sampler, history)


SEARCHERS: dict[str, Searcher] = {"random": Searcher(), "grid": Grid(), "optuna": ParzenEstimator()}


def suggest(
    searcher: str, space: Space, base: TrainConfig, index: int, history: History
) -> Point | None:
    """Return the hyperparameters of trial `index`; None if all points were used.

    Args:
        searcher: Key of SEARCHERS.
        space: Search space.
        base: Default recipe, and the seed of the search.
        index: Number of the trial, from 0.
        history: Trials so far.
    """
    row = SEARCHERS[searcher]
    if index == 0 and row.default_first:
        default = {field: getattr(base, field) for field in space}
        if all(value in space[field] for field, value in default.items()):
            return default
    return row.point(space, seed_of(base.seed, "trial", index), index, history)


def seed_of(*parts: Any) -> int:
    """Return a seed between 0 and 2**31 - 1: a hash of `repr(parts)`, equal in every process."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) >> 1


def _ask(space: Space, sampler: "optuna.samplers.BaseSampler", history: History) -> Point:
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions = {field: domain.distribution() for field, domain in space.items()}
        for trial in history:
            if all(trial.spec.hyperparameters.get(f) in space[f] for f in space):
                study.add_trial(_as_optuna(trial, distributions))
        return dict(study.ask(distributions).params)
    finally:
        optuna.logging.set_verbosity(level)


def _as_optuna(trial: TrialRecord, distributions: Mapping[str, Any]) -> "optuna.trial.FrozenTrial":
    """Convert a trial for Optuna.

    Diverged and failed trials become pruned trials without values, which TPE ranks below all
    others.
    """
    from optuna.trial import TrialState, create_trial

    if trial.status == "finished" and trial.score is not None:
        state: dict[str, Any] = {"state": TrialState.COMPLETE, "value": trial.score}
    elif trial.ended:
        scores = {} if trial.status != "pruned" else {trial.evaluations: trial.score}
        state = {
            "state": TrialState.PRUNED,
            "intermediate_values": {k: v for k, v in scores.items() if v is not None},
        }
    else:
        state = {"state": TrialState.RUNNING}
    params = {field: trial.spec.hyperparameters[field] for field in distributions}
    return create_trial(params=params, distributions=dict(distributions), **state)


def rank(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Sort trials, best first: finished trials by score, then other trials by score.

    Diverged, failed and unscored trials come last. Ties go to the earlier trial.
    """

    def key(trial: TrialRecord) -> tuple[int, float, int]:
        group = {"finished": 0, "diverged": 2, "failed": 2}.get(trial.status, 1)
        score = trial.score if trial.score is not None else -math.inf
        return group if trial.score is not None else 2, -score, trial.spec.index

    return sorted(trials, key=key)
