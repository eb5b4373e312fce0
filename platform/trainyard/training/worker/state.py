"""Resume from a checkpoint: weights, optimizer, state. `saving` writes checkpoints."""

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from trainyard.config import TrainConfig
from trainyard.errors import DamagedRun, UserError, one_line
from trainyard.storage import CheckpointStore, RunFolder
from trainyard.training.outcome import STATE_FILE, TrainState
from trainyard.training.worker.strategies import STRATEGIES

PREDICTIONS = "predictions"

WAIT_SECONDS = 60.0
"""Maximum seconds between messages of the processes while some of them wait for others' work."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def load_checkpoint(
    config: TrainConfig,
    accelerator: Any,
    store: CheckpointStore,
    model: Any,
    optimizer: Any,
    scheduler: Any,
) -> TrainState:
    """Claim the run and resume from its newest valid checkpoint, or start at step 0."""
    found = on_rank_0(accelerator, lambda: _claim(store))
    if found is None:
        return TrainState()
    step, _ = found
    folder = on_every_rank(lambda: store.bring(step))
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


def restore_predictions(
    accelerator: Any, store: CheckpointStore, folder: RunFolder, best: int | None
) -> str | None:
    """Replace predictions/ with those of the best checkpoint; return a warning if it is damaged.

    An attempt that was killed may have written those of an evaluation that is made again now. All
    processes must call this; rank 0 does the work. `best` is the step of the best checkpoint.
    """

    def restore() -> str | None:
        if best is None:
            return None
        try:
            checkpoint = store.bring_best(best)
        except DamagedRun as damaged:
            warning = (
                f"warning: {damaged.problem}; the run continues, and fails at its end unless a "
                f"later evaluation is better: then {damaged.remedy}"
            )
            log.warning(warning)
            return warning
        folder.write_predictions(_stored_predictions(checkpoint))
        return None

    return on_rank_0(accelerator, restore)


def _stored_predictions(folder: Path) -> dict[str, NDArray[Any]]:
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


def on_rank_0(accelerator: Any, work: Callable[[], T]) -> T:
    """Call `work` in a thread of rank 0, and return its result on every process.

    The work may take longer than the process group waits, see `broadcast_result`.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work) if accelerator.is_main_process else None
        result: T = broadcast_result(accelerator, future)
    return result


def on_every_rank(work: Callable[[], T]) -> T:
    """Call `work` in a thread of each process, and return its result when all have ended.

    The processes may differ by more seconds than the process group waits: they exchange messages
    every WAIT_SECONDS.

    Raises:
        Exception: The work failed on this process; else, that of the first process on which it did.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work)
        while True:
            is_busy = bool(wait([future], WAIT_SECONDS).not_done)
            error = None if is_busy else sendable(future.exception())
            states = gather_object([(is_busy, error)])
            errors = [error for _, error in states if error is not None]
            if errors or not any(is_busy for is_busy, _ in states):
                break
    result = future.result()
    if errors:
        raise errors[0]
    return result


def broadcast_result(accelerator: Any, work: Future[Any] | None) -> Any:
    """Return the result of rank 0's `work` on every process; without work, None.

    While rank 0 waits, it sends a message every WAIT_SECONDS. One operation that exceeds the
    timeout of the process group would end the attempt.

    Raises:
        Exception: The work failed.
    """
    while broadcast(accelerator, work is not None and bool(wait([work], WAIT_SECONDS).not_done)):
        pass
    failure = None if work is None else work.exception()
    result = None if work is None or failure is not None else work.result()
    result, received = broadcast(accelerator, (result, sendable(failure)))
    if (error := failure or received) is not None:
        raise error
    return result


@overload
def sendable(error: Exception) -> Exception: ...
@overload
def sendable(error: BaseException | None) -> BaseException | None: ...
def sendable(error: BaseException | None) -> BaseException | None:
    """Return an error as one that pickle can send to another process."""
    is_builtin = isinstance(error, OSError) and type(error).__module__ == "builtins"
    if error is None or isinstance(error, UserError) or is_builtin:
        return error
    return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
