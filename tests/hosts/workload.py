"""The run that is disturbed: a small BERT on generated pairs, long enough to be hurt and to heal."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))

STEPS = 1800
SAVE_STEPS = 100
BATCH = 16


def write_workload(shared: Path) -> None:
    """Model and data below `shared`, once."""
    from support.tiny import write_task, write_tiny_model

    if (shared / "glue").exists():
        return
    shared.mkdir(parents=True)
    write_tiny_model(shared / "model")
    write_task(shared / "glue", train=2000, validation=64)


def flags_for(shared: Path, steps: int, *, alone: bool, storage: str | None = None) -> list[str]:
    """Flags of jobs/train.py: one worker, or one on each of two hosts."""
    return [
        "--task", "mrpc", "--data-dir", str(shared / "glue"),
        "--model-name-or-path", str(shared / "model"), "--storage-path", storage or str(shared / "runs"),
        "--max-length", "32", "--train-batch-size", str(BATCH), "--per-device-train-batch-size", "4",
        "--learning-rate", "1e-4", "--num-train-epochs", "100", "--max-steps", str(steps),
        "--eval-steps", "500", "--save-steps", str(SAVE_STEPS), "--logging-steps", "10",
        "--num-workers", "1" if alone else "2", "--resources-per-worker", "CPU", "1",
    ]  # fmt: skip


def weights(run: Path, step: int) -> dict[str, Any]:
    """Every tensor of the checkpoint of `step`, weights and optimizer state, as numpy."""
    import torch
    from safetensors.numpy import load_file

    (checkpoint,) = (run / "checkpoints").glob(f"step-{step:08d}*")
    found: dict[str, Any] = dict(load_file(checkpoint / "model.safetensors"))
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    for index, state in moments.items():
        for name, tensor in state.items():
            found[f"{index}.{name}"] = tensor.numpy()
    return found
