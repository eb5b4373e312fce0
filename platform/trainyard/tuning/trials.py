"""Trials of a sweep: tokenized data, the run of each trial, and the supply of trials."""

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trainyard.config import TOKENIZATION_FIELDS, TrainConfig, deepspeed_differences
from trainyard.data import PreparedData, Splits, find_splits, prepare, warnings
from trainyard.fleet import Ended, RunSpec, Shared, Supply, tokenization_of
from trainyard.models import build_tokenizer, resolve_model
from trainyard.storage import Fence, SweepFolder, TrialRecord, TrialSpec, record
from trainyard.tasks import Task
from trainyard.terminal import progress_bar, say
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.space import Space

Prepared = Mapping[tuple[Hashable, ...], PreparedData]
"""Tokenized splits, by the values of TOKENIZATION_FIELDS."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Config, data and folders that all trials of a sweep share."""

    sweep: str
    config: SweepConfig
    task: Task
    data: Prepared
    per_worker: Mapping[str, float]
    folders: Mapping[str, Path]
    """Kind of trial ("search" or "confirmation") -> parent folder of the run folders."""
    fence: Fence | None = None

    @property
    def shared(self) -> Shared:
        """Part of the context that is sent to the processes of the trials."""
        return Shared(sweep=self.sweep, task=self.task, data=self.data)

    def run(self, trial: TrialSpec) -> RunSpec:
        config = self.config.train_config(
            trial.hyperparameters,
            storage_path=str(self.folders[trial.kind]),
            run_name=trial.name,
            resources_per_worker=dict(self.per_worker),
        )
        return RunSpec(config=config, trial=trial, fence=self.fence)


def tokenizations(config: SweepConfig, space: Space) -> list[TrainConfig]:
    """Return a config for each combination of TOKENIZATION_FIELDS in the space."""
    default = tuple(getattr(config, field) for field in TOKENIZATION_FIELDS)
    lists = [
        space[field].values if field in space else (value,)
        for field, value in zip(TOKENIZATION_FIELDS, default, strict=True)
    ]
    points = [*itertools.product(*lists)]
    if config.confirm_seeds and default not in points:  # for the default recipe
        points.append(default)
    return [
        config.train_config(dict(zip(TOKENIZATION_FIELDS, values, strict=True)))
        for values in points
    ]


def find_data(runs: Sequence[TrainConfig]) -> Splits:
    """Read the splits that all trials share, and check that every model exists.

    Raises:
        UserError: The data, a model or the loss cannot be used.
    """
    splits = find_splits(runs[0])
    for run in runs:
        run.check_loss(splits.task)
        resolve_model(run.model_name_or_path)
    for note in splits.notes:
        say(note)
    return splits


def prepare_all(splits: Splits, runs: Sequence[TrainConfig], folder: SweepFolder) -> Prepared:
    """Tokenize the data of all trials, before trials occupy the CPUs that Ray Data needs.

    Raises:
        UserError: The data or a tokenizer cannot be used.
    """
    prepared: dict[tuple[Hashable, ...], PreparedData] = {}
    for run in runs:
        data = prepare(splits, build_tokenizer(run), run, folder.path.parent / ".cache")
        found = [*warnings(data, splits.task, run.max_length), *deepspeed_differences(run)]
        for warning in found if not prepared else ():
            say(warning)
        prepared[tokenization_of(run)] = replace(data, warnings=[*splits.warnings, *found])
    return prepared


def search_supply(context: Context, space: Space, folder: SweepFolder) -> Supply:
    """Build the supply of a search: trials to resume, retry or report again, then new trials."""
    config = context.config
    scheduler = SCHEDULERS[config.scheduler]
    begun = deque(
        trial.spec
        for trial in folder.records()
        if not trial.ended
        or scheduler.rejudges
        or (trial.status == "failed" and scheduler.retries_failed)
    )
    if scheduler.retries_failed:
        _retry_failed(folder.records())
    rows = next((len(data.table("train")) for data in context.data.values()), 0)

    def supply() -> RunSpec | Literal["later"] | None:
        if begun:
            return context.run(begun.popleft())
        trial = scheduler.next_trial(config, space, folder.records(), rows)
        if not isinstance(trial, TrialSpec):
            return trial
        folder.add(trial)
        return context.run(trial)

    return supply


def fixed_supply(context: Context, folder: SweepFolder, trials: Iterable[TrialSpec]) -> Supply:
    """Build the supply of the given trials, without ended ones; failed trials train again."""
    records = [record(folder.add(trial)) for trial in trials]
    waiting = deque(r.spec for r in records if not r.ended or r.status == "failed")
    _retry_failed(records)
    return lambda: context.run(waiting.popleft()) if waiting else None


def _retry_failed(trials: Iterable[TrialRecord]) -> None:
    """Mark failed trials as stopped, so that the same command trains them again."""
    for trial in trials:
        if trial.status == "failed":
            trial.run.update(status="stopped")


@contextmanager
def bar_of_runs(title: str, runs: int) -> Iterator[Callable[[RunSpec, Ended], None]]:
    """Show a progress bar over `runs` runs; yield the function to call with each ended run."""
    with progress_bar(runs, unit="run", title=title) as bar:

        def ended(run: RunSpec, how: Ended) -> None:
            say_ended(run, how)
            bar.update()

        yield ended


def say_ended(run: RunSpec, ended: Ended) -> None:
    trial = record(run.folder)
    score = "" if trial.score is None else f" with {trial.score:.4f}"
    point = ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in trial.spec.hyperparameters.items()
    )
    status = "stopped by the scheduler" if ended.status == "pruned" else ended.status
    say(f"{run}: {status}{score} ({point})")
