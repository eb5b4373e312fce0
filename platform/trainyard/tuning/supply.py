"""What the search of a sweep runs: the data, the budget, and one trial after another."""

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

from trainyard.data import PreparedData, find_splits, prepare, warnings
from trainyard.models import build_tokenizer
from trainyard.storage import SweepFolder, TrialSpec
from trainyard.tasks import Task
from trainyard.terminal import say
from trainyard.tuning.config import DEFAULT_TRIALS, SweepConfig
from trainyard.tuning.population import next_stretch
from trainyard.tuning.runner import Supply
from trainyard.tuning.search import grid_size, suggest
from trainyard.tuning.space import DATA_FIELDS, Space
from trainyard.tuning.trial import data_key

Prepared = Mapping[tuple[Any, ...], PreparedData]
"""Tokenized splits by the values of DATA_FIELDS."""


def budget_of(config: SweepConfig, space: Space) -> int:
    """Trials of the search; of a population, its members."""
    if config.scheduler == "pbt":
        return config.population
    return config.num_trials or (grid_size(space) if config.searcher == "grid" else DEFAULT_TRIALS)


def prepare_all(config: SweepConfig, space: Space, folder: SweepFolder) -> tuple[Task, Prepared]:
    """Tokenize once for all trials, before they hold the CPUs that Ray Data would need."""
    default = tuple(getattr(config, field) for field in DATA_FIELDS)
    lists = [
        space[f].values if f in space else (own,)
        for f, own in zip(DATA_FIELDS, default, strict=True)
    ]
    points = [*itertools.product(*lists)]
    if config.confirm_seeds and default not in points:  # it is what the winner is compared with
        points.append(default)
    found: dict[tuple[Any, ...], PreparedData] = {}
    for values in points:
        own = config.train_config(dict(zip(DATA_FIELDS, values, strict=True)))
        splits, tokenizer = find_splits(own), build_tokenizer(own)
        if not found:
            for note in splits.notes:
                say(note)
        data = prepare(splits, tokenizer, own, folder.path.parent / ".cache")
        if not found:
            for warning in warnings(data, splits.task, own.max_length):
                say(warning)
        found[data_key(own)] = data
    return splits.task, found


def _evaluations(config: SweepConfig, data: PreparedData) -> int:
    """How often a run of the default recipe is evaluated."""
    steps_per_epoch = -(-len(data.table("train")) // config.train_batch_size)
    last = config.max_steps or config.num_train_epochs * steps_per_epoch
    return -(-last // (config.eval_steps or steps_per_epoch))


def search_supply(
    config: SweepConfig, space: Space, folder: SweepFolder, data: Prepared, budget: int
) -> Supply:
    """Trials that were begun, then new ones. ASHA hears again of those that ended, to judge by."""
    begun: deque[TrialSpec] = deque()
    for trial in folder.records():
        if trial.status == "failed" and config.scheduler != "pbt":
            trial.run.update(status="stopped")  # its cause may be mended: the same command retries
        elif trial.ended and config.scheduler != "asha":
            continue
        begun.append(trial.spec)

    def supply() -> TrialSpec | Literal["later"] | None:
        if begun:
            return begun.popleft()
        history = folder.records()
        if config.scheduler == "pbt":
            evaluations = _evaluations(config, next(iter(data.values())))
            generations = -(-evaluations // config.grace_period)
            found = next_stretch(config, space, history, generations)
            if isinstance(found, TrialSpec):
                folder.add(found)
            return found
        index = history[-1].spec.index + 1 if history else 0
        if index >= budget:
            return None
        point = suggest(config.searcher, space, config.base, index, history)
        if point is None:
            return None
        spec = TrialSpec(index=index, name=f"trial-{index:04d}", hyperparameters=point)
        folder.add(spec)
        return spec

    return supply
