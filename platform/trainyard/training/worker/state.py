"""Resume from a checkpoint: weights, optimizer, state. `saving` writes checkpoints."""

import json
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from trainyard.config import TrainConfig
from trainyard.storage import CheckpointStore
from trainyard.training.outcome import TrainState
from trainyard.training.worker.strategies import STRATEGIES

STATE_FILE = "state.json"
PREDICTIONS = "predictions"

WAIT_SECONDS = 60.0
"""Maximum seconds between messages of rank 0 while the others wait for its work."""


def load_checkpoint(
    config: TrainConfig,
    accelerator: Any,
    store: CheckpointStore,
    model: Any,
    optimizer: Any,
    scheduler: Any,
) -> TrainState:
    """Claim the run and resume from its newest valid checkpoint, or start at step 0."""
    with ThreadPoolExecutor(1) as thread:
        claimed = thread.submit(_claim, store) if accelerator.is_main_process else None
        found = broadcast_result(accelerator, claimed)
    if found is None:
        return TrainState()
    step, _ = found
    folder = store.bring(step)
    STRATEGIES[config.strategy].load(model, optimizer, folder)
    record = json.loads((folder / STATE_FILE).read_text())
    scheduler.load_state_dict(record["scheduler"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(record["scaler"])
    _use_config(config, optimizer, scheduler)
    state = TrainState(**record["train"])
    if state.step != step:
        raise RuntimeError(f"{folder} holds the state of step {state.step}")
    return state


def _claim(store: CheckpointStore) -> tuple[int, Path] | None:
    store.claim()
    return store.newest()


def stored_predictions(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the logits in a checkpoint by split; the first version stored none."""
    return {path.stem: np.load(path) for path in (folder / PREDICTIONS).glob("*.npy")}


def _use_config(config: TrainConfig, optimizer: Any, scheduler: Any) -> None:
    """Use the config's learning rate and weight decay instead of the checkpoint's.

    The two differ only where a population takes over another member's checkpoint.
    """
    optimizer.param_groups[0]["weight_decay"] = config.weight_decay  # see `build_optimizer`
    scheduler.base_lrs = [config.learning_rate for _ in scheduler.base_lrs]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = config.learning_rate
        group["lr"] = config.learning_rate * factor(scheduler.last_epoch)


def broadcast(accelerator: Any, value: Any) -> Any:
    """Return rank 0's `value` on every process."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def broadcast_result(accelerator: Any, work: Future[Any] | None) -> Any:
    """Return the result of rank 0's `work` on every process; without work, None.

    While rank 0 waits, it sends a message every WAIT_SECONDS. One operation that exceeds the
    timeout of the process group would end the attempt.

    Raises:
        Exception: The work failed, on rank 0 only.
    """
    while broadcast(accelerator, work is not None and bool(wait([work], WAIT_SECONDS).not_done)):
        pass
    return broadcast(accelerator, None if work is None else work.result())
