"""One process on one GPU, without Ray: the same bits twice and after a cut, losses as on a CPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.runs_locally import weights_hash
from support.strategy_runs import KINDS as STRATEGIES
from support.strategy_runs import PRECISIONS, Runs
from support.tiny import write_task, write_tiny_model

from trainyard.config import TrainConfig
from trainyard.models import seed_generator
from trainyard.storage.folder import RunFolder, open_run

pytestmark = pytest.mark.gpu

LAST_STEP = 20
KINDS: dict[str, dict[str, Any]] = {
    **{
        f"{kind}-{precision}": {**flags, "mixed_precision": precision}
        for kind, flags in STRATEGIES.items()
        for precision in PRECISIONS
    },
    "checkpointing": {"gradient_checkpointing": True},
    "unclipped": {"max_grad_norm": 0.0},
    "pair": {"num_workers": 2},  # over gloo: NCCL refuses two processes on a GPU
}
SHARDED = [kind for kind in STRATEGIES if kind != "ddp"]


@pytest.fixture(scope="module")
def base(
    small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory, device: str
) -> TrainConfig:
    return replace(
        small_run, storage_path=str(tmp_path_factory.mktemp("one") / "runs"), use_gpu=device == "cuda",
        max_steps=LAST_STEP, save_steps=5, eval_steps=10, ledger=False,
    )  # fmt: skip


class MadeRuns(Runs):
    """Runs that are made when they are first asked for, by a process for each kind."""

    def __init__(self, base: TrainConfig, meetings: Path) -> None:
        super().__init__(base.storage_path, LAST_STEP)
        self._base, self._meetings = base, meetings

    def __call__(self, name: str) -> RunFolder:
        kind = name.removesuffix("-again").removesuffix("-cut")
        if not (self._meetings / kind).exists():
            with pytest.MonkeyPatch.context() as patch:
                lift_guards(patch)  # for --device cpu
                whole, again, cut = (
                    replace(self._base, run_name=f"{kind}{way}", **KINDS[kind])
                    for way in ("", "-again", "-cut")
                )
            run_ranks(
                int(whole.num_workers),
                [Attempt(whole), Attempt(again), Attempt(cut, cut_at=13), Attempt(cut)],
                self._meetings / kind,
            )
        return super().__call__(name)


@pytest.fixture(scope="module")
def runs(base: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Whole runs, twice; runs that are cut off after step 13 and resumed."""
    return MadeRuns(base, tmp_path_factory.mktemp("meetings"))


@pytest.mark.parametrize("way", ["-again", "-cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_again_or_cut_off_it_ends_with_the_same_bits(runs: Runs, kind: str, way: str) -> None:
    assert weights_hash(runs(kind + way), LAST_STEP) == weights_hash(runs(kind), LAST_STEP)
    assert runs.losses(kind + way) == runs.losses(kind)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", SHARDED)
def test_losses_are_those_of_ddp(runs: Runs, kind: str, precision: str) -> None:
    limit = 1e-5 if precision == "no" else 1e-4
    assert runs.loss_difference(f"{kind}-{precision}", f"ddp-{precision}") <= limit


def test_gradient_checkpointing_changes_no_loss(runs: Runs) -> None:
    assert runs.losses("checkpointing") == runs.losses("ddp-no")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_mixed_precision_ends_near_fp32(runs: Runs, kind: str, precision: str) -> None:
    losses, expected = runs.losses(f"{kind}-{precision}"), runs.losses("ddp-no")
    assert losses != expected
    assert losses[-1] == pytest.approx(expected[-1], abs=0.05)


def test_fp16_skips_steps_and_adam_does_not_count_them(runs: Runs) -> None:
    lines = runs.steps("ddp-fp16")
    skipped = lines[-1]["skipped_steps"]
    assert lines[0]["loss_scale"] == 2.0**23  # the first step overflowed
    assert skipped >= 2
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [1e-3 * (1 - step / LAST_STEP) for step in range(1, LAST_STEP + 1)]
    )
    file = runs.checkpoint("ddp-fp16") / "optimizer.pt"
    moments = torch.load(file, weights_only=True)["state"]
    assert {float(moment["step"]) for moment in moments.values()} == {LAST_STEP - skipped}


def test_a_device_draws_the_numbers_of_torch_manual_seed(device: str) -> None:
    for seed in (0, 7, 2**64 - 1):
        torch.manual_seed(seed)
        expected = torch.rand(5, device=device)
        seed_generator(torch.device(device), seed)
        assert torch.equal(torch.rand(5, device=device), expected)


def test_without_dropout_losses_are_those_of_a_cpu(base: TrainConfig, tmp_path: Path) -> None:
    model = write_tiny_model(
        tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    here = replace(base, model_name_or_path=str(model), run_name="no-dropout")
    cpu = replace(here, use_gpu=False, run_name="no-dropout-cpu")
    for config in (here, cpu):
        run_ranks(1, [Attempt(config)], tmp_path / str(config.run_name))
    found = Runs(base.storage_path, LAST_STEP)
    assert found.losses("no-dropout") == pytest.approx(found.losses("no-dropout-cpu"), abs=1e-4)


def test_no_step_waits_for_the_device_but_to_read_losses(base: TrainConfig, tmp_path: Path) -> None:
    config = replace(
        base, run_name="asynchronous", mixed_precision="bf16", save_steps=None, eval_steps=LAST_STEP,
        logging_steps=5,
    )  # fmt: skip
    run_ranks(1, [Attempt(config, no_waits=True)], tmp_path / "meeting")
    assert len(Runs(base.storage_path, LAST_STEP).losses("asynchronous")) == LAST_STEP / 5


def test_out_of_memory_is_one_sentence(base: TrainConfig, tmp_path: Path, device: str) -> None:
    if device == "cpu":
        pytest.skip("a CPU's memory has no such end")
    model = write_tiny_model(
        tmp_path / "model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
        num_attention_heads=16, max_position_embeddings=512,
    )  # fmt: skip
    data = write_task(tmp_path / "data", train=16_384)
    config = replace(
        base, run_name="large", model_name_or_path=str(model), data_dir=str(data), max_length=512,
        pad_to_max_length=True, train_batch_size=16_384, per_device_train_batch_size=16_384,
    )  # fmt: skip
    run_ranks(1, [Attempt(config)], tmp_path / "meeting")
    folder = open_run(base.storage_path, "large")
    ended = json.loads((folder.path / "outcome.json").read_text())
    assert "use a smaller --per-device-train-batch-size" in ended["error"]
