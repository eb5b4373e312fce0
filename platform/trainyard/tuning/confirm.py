"""The best configurations once more, with fresh seeds, against the default recipe."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainyard.errors import UserError
from trainyard.metrics import decode
from trainyard.storage import RunFolder, SweepFolder, TrialRecord, TrialSpec, record
from trainyard.terminal import StopSignals, say
from trainyard.tuning.clock import Clock
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.honesty import Judged, confirm
from trainyard.tuning.placement import Placement
from trainyard.tuning.runner import Supply, run_trials
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.search import seed_of
from trainyard.tuning.trial import Context

DEFAULT = "default"


def candidates_of(
    config: SweepConfig, ranked: Sequence[TrialRecord], default: Mapping[str, Any]
) -> list[TrialRecord]:
    """The best finished trials that differ from the default recipe and each other by more than seed."""
    chosen: list[TrialRecord] = []
    known = [without_seed(default)]
    for trial in ranked:
        recipe = without_seed(trial.spec.hyperparameters)
        if trial.status == "finished" and trial.score is not None and recipe not in known:
            known.append(recipe)
            chosen.append(trial)
    return chosen[: config.confirm_top]


def without_seed(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe: the seed is not part of it."""
    return {name: value for name, value in hyperparameters.items() if name != "seed"}


def run_confirmation(
    folder: SweepFolder,
    context: Context,
    candidates: Sequence[TrialRecord],
    default: Mapping[str, Any],
    placement: Placement,
    signals: StopSignals,
    clock: Clock,
) -> bool:
    """Train the candidates and the default recipe with fresh seeds; False when asked to stop."""
    config = context.config
    recipes = {
        DEFAULT: default, **{trial.spec.name: trial.spec.hyperparameters for trial in candidates}
    }  # fmt: skip
    say(
        f"confirming {' and '.join(list(recipes)[1:])} against the default recipe with "
        f"{config.confirm_seeds} fresh seeds each"
    )
    specs = deque(
        TrialSpec(
            index=index * config.confirm_seeds + number,
            name=run_name(name, number),
            hyperparameters={**recipe, "seed": seed},
            kind="confirmation",
        )
        for index, (name, recipe) in enumerate(recipes.items())
        for number, seed in enumerate(seeds_of(config))
    )

    def supply() -> TrialSpec | None:
        while specs:
            spec = specs.popleft()
            trial = record(folder.add(spec).path)
            if trial.status == "failed":
                trial.run.update(status="stopped")  # its cause may be mended
            elif trial.ended:
                continue
            return spec
        return None

    wanted: Supply = supply
    fifo = SCHEDULERS["fifo"](config)
    return run_trials(folder, context, wanted, fifo, placement, signals, clock) == "done"


def seeds_of(config: SweepConfig) -> list[int]:
    """Seeds that no trial of the search had."""
    return [seed_of(config.seed, "confirmation", i) for i in range(config.confirm_seeds)]


def run_name(recipe: str, number: int) -> str:
    """Folder of a confirming run."""
    return f"{recipe}-seed-{number}"


def verdict_of(
    folder: SweepFolder,
    context: Context,
    candidates: Sequence[TrialRecord],
    default: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, str]:
    """The `confirmation` of sweep.json; when the default recipe or all candidates failed, why."""
    config = context.config

    def runs(name: str) -> list[RunFolder]:
        return [
            RunFolder(folder.confirmation / run_name(name, number))
            for number in range(config.confirm_seeds)
        ]

    failures = {name: failure(runs(name)) for name in (DEFAULT, *(c.spec.name for c in candidates))}
    complete = [trial for trial in candidates if not failures[trial.spec.name]]
    if failures[DEFAULT] or not complete:
        return None, failures[DEFAULT] or next(filter(None, failures.values()))
    baseline = runs(DEFAULT)
    every = [baseline, *(runs(trial.spec.name) for trial in complete)]
    scores = np.array([[run.read()["result"]["score"] for run in group] for group in every])
    found = confirm(scores, _judged(context, every), seed=config.seed)
    shown = [
        {
            "trial": trial.spec.name,
            "hyperparameters": dict(trial.spec.hyperparameters),
            "scores": own.tolist(),
            "mean": float(own.mean()),
            "runs": [run.path.name for run in group],
        }
        for trial, own, group in zip(complete, scores[1:], every[1:], strict=True)
    ]
    low, high = found.difference_interval
    confirmation = {
        "seeds": seeds_of(config),
        "verdict": found.verdict,
        "winner": {
            **shown[found.winner],
            "corrected": found.corrected,
            "interval": list(found.interval),
        },
        "default": {
            "hyperparameters": dict(default),
            "scores": scores[0].tolist(),
            "mean": float(scores[0].mean()),
            "interval": list(found.default_interval),
            "runs": [run.path.name for run in baseline],
        },
        "candidates": shown,
        "difference": {"value": found.difference, "low": low, "high": high},
    }
    return confirmation, ""


def failure(runs: Sequence[RunFolder]) -> str:
    """Why the runs of a recipe cannot be judged; empty when all have finished."""
    for run in runs:
        known = run.read()
        if known.get("status") != "finished":
            return f"{run.path.name} {known.get('status', 'was not run')} ({known.get('reason')})"
    return ""


def _judged(context: Context, runs: Sequence[Sequence[RunFolder]]) -> list[Judged]:
    data = next(iter(context.data.values()))  # tokenized differently, the labels are the same
    problem = context.task.problem_type
    return [
        Judged(
            metric=context.task.score,
            predictions=[
                [decode(problem, predictions(run, split)) for run in group] for group in runs
            ],
            references=np.asarray(data.table(split).labels),
        )
        for split in data.folders
        if split != "train"
    ]


def predictions(run: RunFolder, split: str) -> Any:
    """The logits that a confirming run left.

    Raises:
        UserError: when they are damaged.
    """
    path = run.predictions / f"{split}.npy"
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged; delete {run.path}, and the same command trains that run again"
        ) from error
