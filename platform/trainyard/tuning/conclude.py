"""Result of a sweep and its files: best.yaml, model/, tables of trials, TensorBoard HParams."""

import csv
import io
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainyard.config import PLACE_FIELDS, TrainConfig
from trainyard.evaluation import one_answer_words
from trainyard.storage import (
    RunFolder,
    SweepFolder,
    TrialRecord,
    link_tree,
    now,
    sync_folder,
    sync_tree,
    write_atomic,
)
from trainyard.summary import Readable
from trainyard.tasks import Task
from trainyard.terminal import say
from trainyard.tuning.confirm import DEFAULT, run_name
from trainyard.tuning.space import Space


@dataclass(frozen=True, repr=False)
class SweepResult(Readable):
    """Result of a finished sweep.

    `score` and `interval` are those of the recommended recipe: the winner, or the default recipe if
    the winner is worse. With a confirmation, the score is corrected for the choice of the winner.
    `interval` is [low, high], None without a confirmation. `verdict` compares the winner with the
    default recipe; None if there was no confirmation or it allows no verdict. `trials` counts
    trials by status, and `seconds` is the time of all attempts.
    """

    run: str
    task: str
    score: float
    interval: list[float] | None
    verdict: str | None
    best_trial: str
    best_hyperparameters: Mapping[str, Any]
    best_config: str
    model: str
    metrics: Mapping[str, Mapping[str, float]]
    trials: Mapping[str, int]
    seconds: float
    warnings: Sequence[str] = ()
    """Sentences about the data and the result of the recommended recipe."""
    data_name: str = ""
    """Display name of the data: Hub data set, stem of the training file, or task."""

    def as_json(self) -> dict[str, Any]:
        return {"job": "tune", **asdict(self)}


def conclude(
    folder: SweepFolder,
    task: Task,
    space: Space,
    ranked: Sequence[TrialRecord],
    confirmation: Mapping[str, Any] | None,
    unconfirmed: str,
    seconds: float,
) -> SweepResult:
    """Choose the recommended recipe, write the files of the sweep, and delete other models.

    Args:
        folder: Folder of the sweep.
        task: Task of the sweep.
        space: Search space.
        ranked: Trials, best first.
        confirmation: Confirmation of sweep.json; None without one.
        unconfirmed: Reason that a requested confirmation is missing; else empty.
        seconds: Time of all attempts at the sweep.

    Raises:
        SupersededError: Another driver has taken over the sweep.
    """
    trials = sorted(ranked, key=lambda trial: trial.spec.index)
    best, name = ranked[0].run, ranked[0].spec.name
    score, interval, verdict = ranked[0].score, None, None
    comment = f"best of {len(ranked)} trials by {task.score}, not confirmed"
    if unconfirmed:
        comment += f": {unconfirmed}"
    if confirmation is not None:
        verdict = confirmation["verdict"]
        winner, default = confirmation["winner"], confirmation["default"]
        name, score, interval = winner["trial"], winner["corrected"], winner["interval"]
        best = folder.run("search", name)
        if verdict == "worse":  # recommend the default recipe
            name, interval = DEFAULT, default["interval"]
            score = default.get("corrected", default["mean"])
            best = folder.run("confirmation", run_name(DEFAULT, 0))
        low, high = interval
        comment = f"{name}: {task.score} {score:.4f} (95 % interval {low:.4f} to {high:.4f}); "
        if verdict is None:
            comment += f"no verdict: {confirmation['withheld']}"
        else:
            than = "from" if verdict == "not distinguishable" else "than"
            comment += f"the winner is {verdict} {than} the default recipe"
    by_stretches = ranked[0].spec.generation is not None  # no single run used these hyperparameters
    if by_stretches and confirmation is None:
        comment += (
            "; these hyperparameters are of the last stretch of its training: training with them "
            "does not reproduce the model (--confirm-seeds trains with them)"
        )
    if confirmation is not None and (by_stretches or not best.model.exists()):
        best = folder.run("confirmation", run_name(name, 0))
    words = one_answer_words(best.read().get("one_answer", {}))
    if words:
        comment += f"; {words}"
    folder.check()
    write_best(folder, best, comment)
    write_tables(folder, trials, space)
    write_hparams(folder, trials, space)
    record = best.read()
    result = SweepResult(
        run=folder.path.name,
        task=task.name,
        score=float(score or 0.0),
        interval=interval,
        verdict=verdict,
        best_trial=name,
        best_hyperparameters={field: record["config"][field] for field in space},
        best_config=str(folder.best_config),
        model=str(folder.model),
        metrics=record["result"]["metrics"],
        trials=dict(Counter(trial.status for trial in trials)),
        seconds=round(seconds, 2),
        warnings=record.get("warnings", []),
        data_name=record.get("data_name", ""),
    )
    say(comment)
    folder.update(
        status="finished",
        ended=now(),
        result=asdict(result),
        reason=unconfirmed or None,
        verdict=verdict,
        confirmation=confirmation,
        warnings=result.warnings,
    )
    # Keep the best trial of the search: an extended sweep may recommend it.
    candidates = confirmation["candidates"] if confirmation else []
    kept = {best.path, ranked[0].run.path, *(folder.trials / c["trial"] for c in candidates)}
    free_models(trials, kept)
    return result


def write_best(folder: SweepFolder, run: RunFolder, comment: str) -> None:
    """Write best.yaml and `model/` from `run`, with `comment` at the top of best.yaml.

    Training with best.yaml reproduces the model bit-exactly, unless `run` is the last stretch of a
    population's member.
    """
    import yaml

    config = TrainConfig.non_defaults(run.read()["config"])
    config = {name: value for name, value in config.items() if name not in PLACE_FIELDS}
    text = f"# {comment}\n" + yaml.safe_dump(config, sort_keys=False)
    write_atomic(folder.best_config, text)
    scratch = folder.path / f".model-{uuid.uuid4().hex[:8]}"
    link_tree(run.model, scratch)
    sync_tree(scratch)
    if folder.model.exists():
        shutil.rmtree(folder.model)
    scratch.rename(folder.model)
    sync_folder(folder.path)


def _row(trial: TrialRecord, known: Mapping[str, Any], space: Space) -> dict[str, Any]:
    result = known.get("result", {})
    return {
        "trial": trial.spec.name,
        "status": trial.status,
        "score": trial.score,
        "evaluations": trial.evaluations,
        "best_step": result.get("best_step"),
        "seconds": result.get("seconds"),
        "startup_seconds": known.get("startup_seconds"),
        "reason": known.get("reason"),
        **{field: trial.spec.hyperparameters.get(field) for field in space},
    }


def write_tables(folder: SweepFolder, trials: Sequence[TrialRecord], space: Space) -> None:
    rows = [_row(trial, trial.run.read(), space) for trial in trials]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder.path / "trials.csv", text.getvalue())
    write_atomic(folder.path / "trials.json", json.dumps(rows, indent=2) + "\n")


def write_hparams(folder: SweepFolder, trials: Sequence[TrialRecord], space: Space) -> None:
    """Write each scored trial's hyperparameters and score for TensorBoard's HParams page."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(folder.tensorboard, ignore_errors=True)
    for trial in trials:
        if trial.score is None:
            continue
        with SummaryWriter(str(folder.tensorboard / trial.spec.name)) as board:
            shown = {field: trial.spec.hyperparameters.get(field) for field in space}
            known = {k: v if isinstance(v, int | float) else str(v) for k, v in shown.items()}
            for summary in hparams(known, {"score": trial.score}):
                board.file_writer.add_summary(summary)  # `add_hparams` opens a second file
            board.add_scalar("score", trial.score)


def free_models(trials: Sequence[TrialRecord], kept: set[Path]) -> None:
    """Delete the checkpoints of ended trials, and the models of trials not in the folders `kept`.

    Training with the same config reproduces the weights. A trial that --max-seconds cut off keeps
    its checkpoints, from which an extended sweep resumes.
    """
    for trial in trials:
        if trial.ended:
            shutil.rmtree(trial.run.checkpoints, ignore_errors=True)
        if trial.run.path not in kept:
            shutil.rmtree(trial.run.model, ignore_errors=True)
