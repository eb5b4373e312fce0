"""Settings and errors of runs on GPUs, checked without one."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs_locally import run_locally

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.training.worker import strategies

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's default choice of algorithms; the choices of this process come back afterwards."""
    chosen = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(VARIABLE, "")  # so that it is restored
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(chosen)


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_computes_deterministically_unless_the_flag_says_no(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies, "build_accelerator", lambda *_, **__: None)
    config = TrainConfig(task="demo", use_gpu=True, deterministic=deterministic)
    strategies.training_accelerator(config)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    assert os.environ.get(VARIABLE) == (":4096:8" if deterministic else None)


def test_determinism_is_part_of_a_runs_identity() -> None:
    config = TrainConfig(task="demo", use_gpu=True)
    other = replace(config, deterministic=False)
    assert other.resolved_run_name != config.resolved_run_name


def run_out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def call_nondeterministic(*_: object, **__: object) -> None:
    """Call an operation that torch refuses on every device."""
    torch.use_deterministic_algorithms(True)
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (run_out_of_memory,
         "the GPU's memory is too small for micro-batches of 4 rows; use a smaller "
         "--per-device-train-batch-size, or --gradient-checkpointing"),
        (call_nondeterministic,
         "put_ has no deterministic implementation on this GPU; use --no-deterministic"),
    ],
)  # fmt: skip
def test_an_error_of_a_gpu_is_one_sentence(
    train: Callable[..., Any], sentence: str, workers: int, small_run: TrainConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One worker returns it; one of several raises it, which no restart repeats."""
    monkeypatch.setattr("trainyard.training.worker.loop.train", train)
    config = replace(small_run, storage_path=str(tmp_path), num_workers=workers)
    if workers == 1:
        outcome, _ = run_locally(config)
        assert (outcome.status, str(outcome.error)) == ("failed", sentence)
        return
    with pytest.raises(UserError) as raised:
        run_locally(config)
    assert str(raised.value) == sentence
