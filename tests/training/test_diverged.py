"""Records of a run that diverged depend on its config, not on the speed of a disk or on workers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.bucket_here import endpoint, url
from support.runs_locally import run_locally
from training.test_saving import SlowWriter, at_once, base

from trainyard.config import TrainConfig
from trainyard.errors import Diverged, UserError
from trainyard.storage import Bucket
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.training.worker.saving import CheckpointWriter, diverged
from trainyard.training.worker.session import Session
from trainyard.training.worker.weights import bare

__all__ = ["base", "endpoint", "url"]  # fixtures

SPEEDS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "at once": at_once,
    "a step later": lambda patch: SlowWriter(patch, 1),
    "at the next checkpoint": lambda patch: SlowWriter(patch, 100),
}
POSITIONS = "bert.embeddings.position_embeddings.weight"


def damage(patch: pytest.MonkeyPatch, step: int, nan_loss: int | None) -> None:
    """Set the weights of a position that no row reaches to NaN after `step`; later a loss, too."""
    finish = Session.finish_step

    def finish_step(session: Session, done: int, loss: Any, rows: int) -> bool:
        if done == step:
            weights = dict(bare(session._live[0]).named_parameters())
            with torch.no_grad():
                weights[POSITIONS][-1] = float("nan")
        return finish(session, done, loss * float("nan") if done == nan_loss else loss, rows)

    patch.setattr(Session, "finish_step", finish_step)


@pytest.mark.parametrize("nan_loss", [None, 5])
def test_weights_that_diverged_end_the_run_at_their_step_however_late_they_are_written(
    nan_loss: int | None, base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a later step is not the reason, though it can be known first."""
    found = {}
    for name, speed in SPEEDS.items():
        with monkeypatch.context() as patch:
            speed(patch)
            damage(patch, 3, nan_loss)
            outcome, folder = run_locally(
                dataclasses.replace(base, run_name=name.replace(" ", "-"))
            )
        steps = [line["step"] for line in folder.metrics()]
        progress = folder.progress()["step"]
        found[name] = str(outcome.error), outcome.notes, outcome.state.step, progress, steps
        assert folder.store().steps() == []
    reason = (
        f"after step 3 the weight {POSITIONS} holds NaN or infinity; lower --learning-rate or add "
        "--warmup-steps (the checkpoints before that step are kept)"
    )
    assert found == dict.fromkeys(SPEEDS, (reason, [], 3, 3, [1, 2, 3]))


def test_a_checkpoint_that_failed_before_the_run_diverged_is_the_reason(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = CheckpointStore.commit

    def full(store: CheckpointStore, step: int, write: Callable[[Path], Any]) -> Path:
        def write_and_fail(folder: Path) -> None:
            write(folder)
            raise UserError(f"no room for step {step}")

        return commit(store, step, write_and_fail)

    monkeypatch.setattr(CheckpointStore, "commit", full)
    for name, speed in SPEEDS.items():
        with monkeypatch.context() as patch:
            speed(patch)
            damage(patch, 100, 4)
            outcome, _ = run_locally(dataclasses.replace(base, run_name=name.replace(" ", "-")))
        assert str(outcome.error) == "no room for step 3"


def test_a_bucket_gets_the_lines_up_to_the_step_that_diverged(
    url: str, base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only those of its last checkpoint."""
    at_once(monkeypatch)
    damage(monkeypatch, 100, 5)
    outcome, folder = run_locally(dataclasses.replace(base, storage_path=url, run_name="nan"))
    assert str(outcome.error).startswith("the loss of step 5 is nan")
    stored = Bucket(url).read("nan/metrics.jsonl")
    assert stored is not None
    assert stored.content.count(b"\n") == len(folder.metrics()) == 4


def test_the_weight_that_is_named_does_not_depend_on_the_number_of_workers(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each has other weights, and a full disk of one of them is not the reason either."""

    def gather(mine: Any, parts: list[Any], **_: Any) -> None:
        assert str(mine).startswith("after step 3 the weight c.bias holds")
        parts[:] = [OSError(28, "No space left"), mine, diverged("after step 3 the weight b holds")]

    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda *_, **__: None)
    monkeypatch.setattr(dist, "gather_object", gather)
    config = dataclasses.replace(base, strategy="fsdp")
    three = SimpleNamespace(is_main_process=True, num_processes=3, process_index=0)
    writer = CheckpointWriter(config, three, CheckpointStore(tmp_path))
    nan = torch.full((2,), float("nan"))
    model = torch.nn.ModuleDict({"c": torch.nn.Linear(2, 2)})
    snapshot: Any = SimpleNamespace(step=3, model=model, weights={"c.weight": nan, "c.bias": nan})
    with pytest.raises(Diverged, match="after step 3 the weight b holds"):
        writer._together("an attempt", snapshot)
