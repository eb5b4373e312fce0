"""A run whose best checkpoint is damaged resumes, and fails only if no later one is better."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs_locally import run_locally
from training.test_saving import LAST_STEP, base, contents

from trainyard.config import TrainConfig
from trainyard.errors import DamagedRun
from trainyard.evaluation import score
from trainyard.storage import RunFolder, Stopwatch
from trainyard.training.driver.fit import _conclude
from trainyard.training.outcome import Outcome
from trainyard.training.worker.session import Session

__all__ = ["base"]  # fixture


class CutOff(BaseException):
    """End of an attempt that nothing in the product handles."""


def score_as(patch: pytest.MonkeyPatch, scores: Iterator[float]) -> None:
    def scored(*arguments: Any, **named: Any) -> dict[str, Any]:
        found = score(*arguments, **named)
        found["metrics"]["f1"] = next(scores)
        return found

    patch.setattr(f"{Session.__module__}.score", scored)


def cut_off(config: TrainConfig, done: int, patch: pytest.MonkeyPatch) -> RunFolder:
    """Return the folder of a run that was killed after step `done` and its checkpoint."""
    finish = Session.finish_step

    def finish_step(session: Session, step: int, *rest: Any) -> bool:
        going_on = finish(session, step, *rest)
        if step == done:
            session._join_checkpoint()
            raise CutOff
        return going_on

    patch.setattr(Session, "finish_step", finish_step)
    with pytest.raises(CutOff):
        run_locally(config)
    return RunFolder(Path(config.storage_path) / config.resolved_run_name)


def resumed(
    config: TrainConfig, damaged: str, last_score: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[Outcome, RunFolder, Path]:
    """Kill a run after step 9, damage its best checkpoint, that of step 6, and resume it."""
    with monkeypatch.context() as patch:
        score_as(patch, iter([0.8]))
        folder = cut_off(config, 9, patch)
    assert folder.store().steps() == [6, 9]
    best = folder.store().path(6)
    if damaged:
        os.truncate(best / damaged, 100)
    else:
        best.rename(best.with_name("lost"))
    with monkeypatch.context() as patch:
        score_as(patch, iter([last_score]))
        outcome, folder = run_locally(config)
    return outcome, folder, best


@pytest.mark.parametrize("damaged", ["predictions/validation.npy", "model.safetensors", ""])
def test_a_damaged_best_checkpoint_costs_nothing_if_a_later_one_is_better(
    damaged: str, base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, folder, best = resumed(base, damaged, 0.9, monkeypatch)
    assert (outcome.status, outcome.state.best_step) == ("finished", LAST_STEP)
    (note,) = outcome.notes
    assert note.startswith(f"warning: the best checkpoint {best} is damaged (")
    assert note.endswith(
        "); the run continues, and fails at its end unless a later evaluation is better: then use "
        "--fresh to train it again"
    )
    with monkeypatch.context() as patch:
        score_as(patch, iter([0.8, 0.9]))
        undisturbed, whole = run_locally(dataclasses.replace(base, run_name="undisturbed"))
    assert outcome.state == undisturbed.state
    assert contents(folder)["step-00000012"] == contents(whole)["step-00000012"]
    assert folder.metrics() == whole.metrics()
    for path in whole.predictions.iterdir():
        assert (folder.predictions / path.name).read_bytes() == path.read_bytes()
    assert folder.store().bring_best(LAST_STEP) == folder.store().path(LAST_STEP)


def test_a_run_whose_best_checkpoint_is_damaged_fails_at_its_end(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that the command is run, with the same sentence."""
    outcome, folder, best = resumed(base, "model.safetensors", 0.7, monkeypatch)
    unused: Any = None
    for _ in range(2):
        assert (outcome.status, outcome.state.best_step) == ("finished", 6)
        assert len(outcome.notes) == 1
        with pytest.raises(DamagedRun, match=r"; use --fresh to train it again$") as raised:
            _conclude(base, unused, unused, folder, outcome, unused, Stopwatch())
        reason = f"the best checkpoint {best} is damaged (model.safetensors has 100 bytes, not "
        assert str(raised.value).startswith(reason)
        known = folder.read()
        assert (known["status"], known["reason"]) == ("failed", str(raised.value))
        outcome, folder = run_locally(base)
