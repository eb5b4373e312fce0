"""What a sweep leaves for people: best.yaml, the winning model, tables, TensorBoard's HParams."""

import csv
import io
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.flags import PLACE_FIELDS
from trainyard.storage import (
    RunFolder,
    SweepFolder,
    TrialRecord,
    link_tree,
    sync_folder,
    sync_tree,
    write_atomic,
)
from trainyard.tuning.space import Space


def best_config(run: RunFolder) -> dict[str, Any]:
    """The fields of a run that differ from the defaults: what decides its result, and no more."""
    record = run.read()["config"]
    config = {
        field.name: record.get(field.name, field.metadata.get("before", field.default))
        for field in fields(TrainConfig)
        if field.name not in PLACE_FIELDS
    }
    return {
        field.name: config[field.name]
        for field in fields(TrainConfig)
        if field.name in config and config[field.name] != field.default
    }


def write_best(folder: SweepFolder, run: RunFolder, comment: str) -> None:
    """best.yaml, whose run is `model/` to the bit, and `model/` itself."""
    import yaml

    text = f"# {comment}\n" + yaml.safe_dump(best_config(run), sort_keys=False)
    write_atomic(folder.best_config, text)
    scratch = folder.path / f".model-{uuid.uuid4().hex[:8]}"
    link_tree(run.model, scratch)
    sync_tree(scratch)
    if folder.model.exists():
        shutil.rmtree(folder.model)
    scratch.rename(folder.model)
    sync_folder(folder.path)


def rows_of(trials: Sequence[TrialRecord], space: Space) -> list[dict[str, Any]]:
    """One row per trial: what it was, how it went, and its hyperparameters."""
    return [_row(trial, trial.run.read(), space) for trial in trials]


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
    """trials.csv and trials.json."""
    rows = rows_of(trials, space)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder.path / "trials.csv", text.getvalue())
    write_atomic(folder.path / "trials.json", json.dumps(rows, indent=2) + "\n")


def write_hparams(folder: SweepFolder, trials: Sequence[TrialRecord], space: Space) -> None:
    """TensorBoard's HParams tab: each trial's hyperparameters with its score."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(folder.tensorboard, ignore_errors=True)
    for trial in trials:
        if trial.score is None:
            continue
        with SummaryWriter(str(folder.tensorboard / trial.spec.name)) as board:
            shown = {field: trial.spec.hyperparameters.get(field) for field in space}
            known = {k: v if isinstance(v, int | float) else str(v) for k, v in shown.items()}
            for summary in hparams(
                known, {"score": trial.score}
            ):  # `add_hparams` opens a second file
                board.file_writer.add_summary(summary)
            board.add_scalar("score", trial.score)


def free_models(trials: Sequence[TrialRecord], kept: set[Path]) -> None:
    """Delete the weights of trials that lost: their configs give them again, to the bit.

    One that was cut off by --max-seconds keeps its checkpoints: given more time, it goes on from them.
    """
    for trial in trials:
        if trial.ended:
            shutil.rmtree(trial.run.checkpoints, ignore_errors=True)
        if trial.run.path not in kept:
            shutil.rmtree(trial.run.model, ignore_errors=True)
