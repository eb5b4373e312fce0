"""The run that is disturbed: a small BERT on generated pairs, long enough to be hurt and to heal."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))
from support.s3_server import BUCKET

STEPS = 1800
SAVE_STEPS = 100
BATCH = 16
STRATEGIES = {
    "fsdp": ("--strategy", "fsdp"),
    "zero2": ("--strategy", "deepspeed", "--zero-stage", "2"),
    "zero3": ("--strategy", "deepspeed", "--zero-stage", "3"),
}
"""Flags of the strategies that shard; all other runs are ddp's."""


def write_workload(shared: Path) -> None:
    """Model and data below `shared`, once."""
    from support.tiny import write_task, write_tiny_model

    if (shared / "glue").exists():
        return
    shared.mkdir(parents=True)
    write_tiny_model(shared / "model")
    write_task(shared / "glue", train=2000, validation=64)


def strategy_of(name: str) -> str | None:
    """The strategy that the name of a run ends in; None for ddp."""
    last = name.rpartition("-")[2]
    return last if last in STRATEGIES else None


def flags_for(shared: Path, name: str, steps: int) -> list[str]:
    """Flags of jobs/train.py for the run called `name`: one worker, or one on each of two hosts."""
    alone, strategy = name.endswith("-alone"), strategy_of(name)
    storage = f"s3://{BUCKET}" if name.endswith("-bucket") else str(shared / "runs")
    return [
        "--task", "mrpc", "--data-dir", str(shared / "glue"),
        "--model-name-or-path", str(shared / "model"), "--storage-path", storage,
        "--max-length", "32", "--train-batch-size", str(BATCH), "--per-device-train-batch-size", "4",
        "--learning-rate", "1e-4", "--num-train-epochs", "100", "--max-steps", str(steps),
        "--eval-steps", "500", "--save-steps", str(SAVE_STEPS), "--logging-steps", "10",
        "--num-workers", "1" if alone else "2", "--resources-per-worker", "CPU", "1",
        "--keep-optimizer-state",
        *(STRATEGIES[strategy] if strategy else ()),
    ]  # fmt: skip


def weights(run: Path, step: int) -> dict[str, Any]:
    """Every weight of the checkpoint of `step`, as numpy."""
    from trainyard.training.worker.weights import whole_weights

    return {name: tensor.numpy() for name, tensor in whole_weights(_checkpoint(run, step)).items()}


def moments(run: Path, step: int) -> dict[str, Any]:
    """Every tensor of the optimizer's state in the checkpoint of `step`, as numpy."""
    from trainyard.training.worker.weights import stored_moments

    return {
        f"{parameter}.{name}": tensor.numpy()
        for parameter, state in stored_moments(_checkpoint(run, step))["state"].items()
        for name, tensor in state.items()
    }


def _checkpoint(run: Path, step: int) -> Path:
    (found,) = (run / "checkpoints").glob(f"step-{step:08d}*")
    return found
