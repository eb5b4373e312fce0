"""Confirmation: train the best recipes and the default recipe with fresh seeds; compare them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data import is_test, selection_and_test
from trainyard.fleet import Supply
from trainyard.metrics import answers, get_metric, is_constant
from trainyard.storage import RunFolder, SweepFolder, TrialRecord, TrialSpec
from trainyard.terminal import say
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.honesty import CONFIRMATION_SHARE, FEWEST_SEEDS, SplitPredictions, confirm
from trainyard.tuning.searchers import seed_of
from trainyard.tuning.trials import Context, fixed_supply

DEFAULT = "default"
SPLIT = "rows that the search did not see"
"""`method` in sweep.json: some evaluation rows score trials, the others decide the verdict."""
SPLIT_LATER = "rows set aside after a search that saw them"
"""`method` in sweep.json for a sweep that began without setting rows aside.

Its finished trials are ranked again, by stored predictions on a part of the rows. The other rows
still influenced the searcher and the choice of epochs.
"""

ONE_ANSWER = (
    "the winner and the default recipe give one answer for every row with each seed, so their scores "
    "say nothing about the texts; train for more steps, or search other values"
)
"""Reason for no verdict: constant predictions make the interval of the difference meaningless."""


def candidates_of(
    config: SweepConfig, ranked: Sequence[TrialRecord], default: Mapping[str, Any]
) -> list[TrialRecord]:
    """Return the best finished trials, at most --confirm-top.

    They differ from the default recipe, and from each other, in more than the seed.

    Args:
        config: Flags of the sweep.
        ranked: Trials, best first.
        default: Hyperparameters of the default recipe.
    """
    chosen: list[TrialRecord] = []
    known = [without_seed(default)]
    for trial in ranked:
        recipe = without_seed(trial.spec.hyperparameters)
        if trial.status == "finished" and trial.score is not None and recipe not in known:
            known.append(recipe)
            chosen.append(trial)
    return chosen[: config.confirm_top]


def without_seed(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hyperparameters.items() if name != "seed"}


def confirmation_supply(
    context: Context,
    folder: SweepFolder,
    candidates: Sequence[TrialRecord],
    default: Mapping[str, Any],
) -> Supply:
    """Build the supply of confirming runs: candidates and the default recipe with fresh seeds.

    Args:
        context: Config and data of the sweep.
        folder: Folder of the sweep.
        candidates: Trials to confirm.
        default: Hyperparameters of the default recipe.
    """
    config = context.config
    recipes = {
        DEFAULT: default, **{trial.spec.name: trial.spec.hyperparameters for trial in candidates}
    }  # fmt: skip
    say(
        f"confirming {' and '.join(list(recipes)[1:])} against the default recipe with "
        f"{config.confirm_seeds} fresh seeds each"
    )
    trials = [
        TrialSpec(
            index=index * config.confirm_seeds + number,
            name=run_name(name, number),
            hyperparameters={**recipe, "seed": seed},
            kind="confirmation",
        )
        for index, (name, recipe) in enumerate(recipes.items())
        for number, seed in enumerate(seeds_of(config))
    ]
    return fixed_supply(context, folder, trials)


def seeds_of(config: SweepConfig) -> list[int]:
    return [seed_of(config.seed, "confirmation", i) for i in range(config.confirm_seeds)]


def run_name(recipe: str, number: int) -> str:
    return f"{recipe}-seed-{number}"


def verdict_of(
    folder: SweepFolder,
    context: Context,
    candidates: Sequence[TrialRecord],
    default: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, str]:
    """Compare the confirming runs, and record the comparison as a look at the confirmation rows.

    Args:
        folder: Folder of the sweep.
        context: Config and data of the sweep.
        candidates: Trials that were trained again.
        default: Hyperparameters of the default recipe.

    Returns:
        The `confirmation` of sweep.json and an empty string, or None and the reason that there is
        none.

    Raises:
        UserError: There are too few evaluation rows to set any aside, or a stored file is damaged.
    """
    config = context.config

    def runs(name: str) -> list[RunFolder]:
        return [
            folder.run("confirmation", run_name(name, number))
            for number in range(config.confirm_seeds)
        ]

    failures = {name: failure(runs(name)) for name in (DEFAULT, *(c.spec.name for c in candidates))}
    complete = [trial for trial in candidates if not failures[trial.spec.name]]
    if failures[DEFAULT] or not complete:
        return None, failures[DEFAULT] or next(filter(None, failures.values()))
    baseline = runs(DEFAULT)
    every = [baseline, *(runs(trial.spec.name) for trial in complete)]
    rows = confirmation_rows(context)
    evaluated = [
        SplitPredictions(
            metric=context.task.score,
            predictions=[[_answers(context, run, part) for run in group] for group in every],
            references=part.references,
            searched=part.searched,
        )
        for part in rows
    ]
    looks = looks_of(folder)
    this = {"candidates": [t.spec.name for t in complete], "seeds": config.confirm_seeds}
    if this not in looks:
        looks.append(this)
    look = 1 + looks.index(this)
    found = confirm(evaluated, seed=config.seed, look=look)
    withheld = _withheld(context, found.verdict)
    if _give_one_answer(evaluated, 1 + found.winner):
        withheld = ONE_ANSWER
    scores = _scores_on_all_rows(evaluated)
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
        "verdict": None if withheld else found.verdict,
        "withheld": withheld,
        "method": SPLIT_LATER if searches_all_rows(context) else SPLIT,
        "rows": {
            "searched": sum(int(part.searched.sum()) for part in rows),
            "confirmed": sum(int((~part.searched).sum()) for part in rows),
        },
        "covers": found.covers,
        "look": look,
        "confidence": found.confidence,
        "winner": {
            **shown[found.winner],
            "corrected": found.corrected,
            "interval": list(found.interval),
        },
        "default": {
            "hyperparameters": dict(default),
            "scores": scores[0].tolist(),
            "mean": float(scores[0].mean()),
            "corrected": found.default,
            "interval": list(found.default_interval),
            "runs": [run.path.name for run in baseline],
        },
        "candidates": shown,
        "difference": {"value": found.difference, "low": low, "high": high},
    }
    folder.update(looks=looks)
    return confirmation, ""


def _give_one_answer(splits: Sequence[SplitPredictions], winner: int) -> bool:
    """Return whether every run of the default recipe and the winner predicts a constant.

    `winner` is the index of the winner among all configurations, where 0 is the default recipe.
    """
    return all(
        is_constant(run)
        for split in splits
        for recipe in (0, winner)
        for run in split.predictions[recipe]
    )


def _withheld(context: Context, verdict: str | None) -> str | None:
    if verdict is None:
        return (
            f"{context.config.confirm_seeds} seed(s) cannot tell a recipe from its seeds; the interval "
            f"covers rows only. Use --confirm-seeds {FEWEST_SEEDS} or more"
        )
    if searches_all_rows(context) and (name := _without_predictions(context)):
        return (
            f"the search saw all rows, and {name} left no predictions by which to choose on a part "
            "of them"
        )
    return None


def looks_of(folder: SweepFolder) -> list[dict[str, Any]]:
    """Return the comparisons that were made on the confirmation rows, oldest first.

    Each comparison uses up a part of the error probability, see `confidence_of`.

    Raises:
        DamagedRun: sweep.json is damaged.
    """
    known = folder.read()
    earlier = [{"candidates": "those of an earlier version"}] if known.get("confirmation") else []
    return list(known.get("looks", earlier))


def failure(runs: Sequence[RunFolder]) -> str:
    """Return the reason that a recipe's runs cannot be compared; empty if all have finished.

    Raises:
        DamagedRun: A run.json is damaged.
    """
    for run in runs:
        known = run.read()
        if known.get("status") != "finished":
            return f"{run.path.name} {known.get('status', 'was not run')} ({known.get('reason')})"
    return ""


@dataclass(frozen=True)
class Rows:
    """Evaluation rows of one split, some for the search and the others for the confirmation.

    `references` holds labels or values: [rows], or [rows, labels] for multi-label data. `searched`
    is a mask of the rows for the search.
    """

    splits: tuple[str, ...]
    """Names of the stored splits whose predictions, concatenated, match the rows."""
    references: NDArray[Any]
    searched: NDArray[np.bool_]


def searches_all_rows(context: Context) -> bool:
    """Return whether trials are scored on all evaluation rows, because none were set aside."""
    return not any(is_test(name) for name in _evaluation_splits(context))


def _evaluation_splits(context: Context) -> list[str]:
    return [name for name in next(iter(context.data.values())).folders if name != "train"]


def confirmation_rows(context: Context) -> list[Rows]:
    """Return the evaluation rows of each split, with the mask of the rows for the search.

    If no rows were set aside before the search, CONFIRMATION_SHARE of each split confirms.

    Raises:
        UserError: There are too few rows to set any aside.
    """
    data = next(iter(context.data.values()))  # all tokenizations have the same labels
    names = _evaluation_splits(context)

    def labels(name: str) -> NDArray[Any]:
        return np.asarray(data.table(name).labels)

    if searches_all_rows(context):
        found = []
        for name in names:
            references = labels(name)
            searched = np.zeros(len(references), np.bool_)
            searched[selection_and_test(references, CONFIRMATION_SHARE)[0]] = True
            found.append(Rows((name,), references, searched))
        return found
    chosen = [name for name in names if not is_test(name)]
    tests = [name for name in names if is_test(name)]
    return [
        Rows(
            (name, test),
            np.concatenate([labels(name), labels(test)]),
            np.repeat([True, False], [len(labels(name)), len(labels(test))]),
        )
        for name, test in zip(chosen, tests, strict=True)
    ]


def rank_on_searched_rows(context: Context, ranked: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    """Sort finished trials by score on the rows for the search, best first; other trials follow.

    `ranked` is returned unchanged without a confirmation, or if a trial lacks predictions. It is
    also unchanged if rows were set aside before the search, since no score includes those rows.

    Raises:
        UserError: There are too few rows to set any aside, or predictions are damaged.
    """
    if not context.config.confirm_seeds or not searches_all_rows(context):
        return ranked
    if _without_predictions(context):
        return ranked
    finished = [t for t in ranked if t.status == "finished" and t.score is not None]
    rows = confirmation_rows(context)

    def score(trial: TrialRecord) -> float:
        values = [
            get_metric(context.task.score).function(
                _answers(context, trial.run, part)[part.searched], part.references[part.searched]
            )
            for part in rows
        ]
        return sum(values) / len(values)

    others = [trial for trial in ranked if trial not in finished]
    return [*sorted(finished, key=score, reverse=True), *others]


def _without_predictions(context: Context) -> str | None:
    for trial in SweepFolder(context.folders["search"].parent).records():
        if trial.status == "finished" and not all(
            (trial.run.predictions / f"{name}.npy").exists() for name in _evaluation_splits(context)
        ):
            return trial.spec.name
    return None


def _answers(context: Context, run: RunFolder, rows: Rows) -> NDArray[Any]:
    logits = [run.read_predictions(name) for name in rows.splits]
    task = context.task
    return answers(task.score, task.problem_type, np.concatenate(logits))


def _scores_on_all_rows(splits: Sequence[SplitPredictions]) -> NDArray[np.float64]:
    """Return each run's mean score over splits, on all evaluation rows: [configurations, seeds]."""
    totals = [
        [
            [get_metric(split.metric).function(p, split.references) for p in group]
            for group in split.predictions
        ]
        for split in splits
    ]
    return np.asarray(np.mean(totals, axis=0))
