"""Which point of the space is next: a pure function of the seed and of what is known so far.

A killed sweep therefore goes on as if nothing had happened: no state of a searcher is stored.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.storage import TrialRecord
from trainyard.tuning.config import Searcher
from trainyard.tuning.space import Space

Point = dict[str, Any]
History = Sequence[TrialRecord]

STARTUP_TRIALS = 6
"""Random points before Optuna's model of the space is used."""


def suggest(
    searcher: Searcher, space: Space, base: TrainConfig, index: int, history: History
) -> Point | None:
    """The hyperparameters of trial `index`, or None when the search is exhausted.

    Unless a grid is walked, trial 0 is the default recipe, where the space holds it.
    """
    if index == 0 and searcher != "grid":
        default = {field: getattr(base, field) for field in space}
        if all(value in space[field] for field, value in default.items()):
            return default
    return SEARCHERS[searcher](space, seed_of(base.seed, "trial", index), index, history)


def seed_of(*parts: Any) -> int:
    """A seed below 2**31 that is a function of `parts` alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) >> 1


def grid_size(space: Space) -> int:
    """Points of a grid.

    Raises:
        UserError: when the space has a range, of which there is no last point.
    """
    for field, domain in space.items():
        if not domain.values:
            raise UserError(
                f"--searcher grid cannot walk {field}={domain}; list its values, as in "
                f"--set {field}=grid:{domain.low:g},{domain.high:g}, or use --space bert"
            )
    return math.prod(len(domain.values) for domain in space.values())


def check_searcher(searcher: Searcher, space: Space, num_trials: int | None) -> None:
    """Refuse a searcher that does not fit the space.

    Raises:
        UserError: for a range in a grid, a grid too large, or a grid under another searcher.
    """
    if searcher == "grid":
        size = grid_size(space)
        if num_trials is not None and num_trials < size:
            raise UserError(
                f"the grid has {size} points, more than --num-trials {num_trials}; leave out "
                "--num-trials, list fewer values, or use --searcher random"
            )
        return
    for field, domain in space.items():
        if domain.kind == "grid":
            raise UserError(
                f"--set {field}={domain} asks for every point of a grid, which --searcher {searcher} "
                f"does not walk; use --searcher grid, or {field}=choice:…"
            )


def _grid(space: Space, seed: int, index: int, history: History) -> Point | None:  # noqa: ARG001
    points = itertools.product(*(domain.values for domain in space.values()))
    values = next(itertools.islice(points, index, None), None)
    return None if values is None else dict(zip(space, values, strict=True))


def _random(space: Space, seed: int, index: int, history: History) -> Point:  # noqa: ARG001
    import optuna

    return _ask(space, optuna.samplers.RandomSampler(seed), ())


def _optuna(space: Space, seed: int, index: int, history: History) -> Point:  # noqa: ARG001
    """TPE (Bergstra et al. 2011), multivariate (Falkner et al. 2018), by Optuna."""
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True
        )
    return _ask(space, sampler, history)


SEARCHERS: dict[str, Callable[[Space, int, int, History], Point | None]] = {
    "random": _random,
    "grid": _grid,
    "optuna": _optuna,
}


def _ask(space: Space, sampler: Any, history: History) -> Point:
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        distributions = {field: domain.distribution() for field, domain in space.items()}
        for trial in history:
            if all(trial.spec.hyperparameters.get(f) in space[f] for f in space):
                study.add_trial(_told(trial, distributions))
        return dict(study.ask(distributions).params)
    finally:
        optuna.logging.set_verbosity(level)


def _told(trial: TrialRecord, distributions: Mapping[str, Any]) -> Any:
    """A trial as Optuna takes it: what diverged or failed ranks below all that was pruned."""
    from optuna.trial import TrialState, create_trial

    if trial.status == "finished" and trial.score is not None:
        told: dict[str, Any] = {"state": TrialState.COMPLETE, "value": trial.score}
    elif trial.ended:
        known = {} if trial.status != "pruned" else {trial.evaluations: trial.score}
        told = {
            "state": TrialState.PRUNED,
            "intermediate_values": {k: v for k, v in known.items() if v is not None},
        }
    else:
        told = {"state": TrialState.RUNNING}
    params = {field: trial.spec.hyperparameters[field] for field in distributions}
    return create_trial(params=params, distributions=dict(distributions), **told)


def rank(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Best first: finished ones by score, then the others by theirs, diverged and failed ones last.

    Ties go to the earlier trial.
    """

    def key(trial: TrialRecord) -> tuple[int, float, int]:
        group = {"finished": 0, "diverged": 2, "failed": 2}.get(trial.status, 1)
        score = trial.score if trial.score is not None else -math.inf
        return group if trial.score is not None else 2, -score, trial.spec.index

    return sorted(trials, key=key)
