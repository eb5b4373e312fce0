"""--per-device-train-tokens: the same promises, with steps of different numbers of micro-batches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.forks import run_forked
from support.ranks import Attempt
from support.runs_locally import run_locally, weights_hash
from support.tiny import read_lines

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training.driver.restarts import _sentence

LAST_STEP = 8
"""Six steps are an epoch of 90 rows; one of them is partial."""


@pytest.fixture(scope="module")
def base(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Steps of 16 rows of 7 to 32 tokens, in at least two micro-batches of at most 64 tokens."""
    return replace(
        small_run, storage_path=str(tmp_path_factory.mktemp("budget") / "runs"), num_workers=2,
        per_device_train_batch_size=8, per_device_train_tokens=64, max_steps=LAST_STEP, eval_steps=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def storage(base: TrainConfig) -> str:
    """Folder of runs: on two workers, on one, and killed on two and resumed on one."""
    killed = replace(base, run_name="killed", save_steps=3)
    run_forked(
        [
            Attempt(replace(base, run_name="pair")),
            Attempt(replace(base, run_name="alone", num_workers=1)),
            Attempt(killed, killed=(1, "step:5"), kills_all=True),
            Attempt(replace(killed, num_workers=1)),
        ],
        Path(base.storage_path).parent / "meeting",
    )
    return base.storage_path


def run_of(storage: str, name: str) -> RunFolder:
    folder = open_run(storage, name)
    ended = json.loads((folder.path / "outcome.json").read_text())
    assert (ended["status"], ended["step"]) == ("finished", LAST_STEP), ended
    return folder


@pytest.mark.parametrize("name", ["alone", "killed"])
def test_workers_and_interruption_do_not_change_the_bits(storage: str, name: str) -> None:
    pair, other = run_of(storage, "pair"), run_of(storage, name)
    assert weights_hash(other, LAST_STEP) == weights_hash(pair, LAST_STEP)
    assert other.metrics() == pair.metrics()


def test_each_row_is_trained_on_once_per_epoch(storage: str) -> None:
    folder = run_of(storage, "pair").path
    lines = [line for path in folder.glob("ledger/*.jsonl") for line in read_lines(path)]
    seen = [row for line in lines if line["epoch"] == 0 for row in line["rows"]]
    assert sorted(seen) == list(range(90))
    passes = [
        len({line["slot"] for line in lines if line["step"] == step}) for step in range(LAST_STEP)
    ]
    assert len(set(passes)) > 1, passes


def test_the_loss_of_a_step_is_the_mean_over_its_rows(base: TrainConfig) -> None:
    """Without dropout it does not depend on how the step is cut."""
    losses = []
    for tokens in (64, None):
        config = replace(
            base, run_name=f"mean-{tokens}", num_workers=1, dropout=0.0,
            per_device_train_tokens=tokens,
        )  # fmt: skip
        _, folder = run_locally(config)
        losses.append([line["loss"] for line in folder.metrics() if "loss" in line])
    assert len(losses[0]) == LAST_STEP
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_is_part_of_the_identity(base: TrainConfig) -> None:
    names = {
        replace(base, run_name=None, per_device_train_tokens=tokens).resolved_run_name
        for tokens in (None, 64, 128)
    }
    assert len(names) == 3


def test_a_gpu_that_is_too_small_asks_for_fewer_tokens(base: TrainConfig) -> None:
    sentence = _sentence(torch.OutOfMemoryError(), base)
    assert str(sentence) == (
        "the GPU's memory is too small for micro-batches of 64 tokens; use a smaller "
        "--per-device-train-tokens, or --gradient-checkpointing"
    )


def test_what_it_cannot_be_combined_with_is_refused(base: TrainConfig) -> None:
    with pytest.raises(UserError) as refused:
        replace(base, per_device_train_tokens=31)
    assert str(refused.value) == (
        "per_device_train_tokens=31 is less than a row of max_length=32 tokens; use at least 32, "
        "or a smaller max_length"
    )
    with pytest.raises(UserError) as refused:
        replace(base, loop="trainer")
    assert str(refused.value) == (
        "loop='trainer' runs the same number of micro-batches in every step, which "
        "per_device_train_tokens varies; drop one of the two"
    )
