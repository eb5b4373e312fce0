"""Save weights, optimizer and state as a checkpoint, and load them again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from trainyard.config import TrainConfig
from trainyard.errors import SupersededError, UserError
from trainyard.storage import CheckpointStore, entry_of, sync_file, write_array, write_json
from trainyard.training.outcome import TrainState
from trainyard.training.worker.strategies import STRATEGIES
from trainyard.training.worker.weights import (
    OPTIMIZER_FILE,
    bare,
    write_index,
    write_part,
)

STATE_FILE = "state.json"
PREDICTIONS = "predictions"
KEPT_CHECKPOINTS = 2
"""Number of newest checkpoints kept next to the best: the second replaces a damaged first."""


def save_checkpoint(
    config: TrainConfig,
    accelerator: Any,
    store: CheckpointStore,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    state: TrainState,
    predictions: Mapping[str, NDArray[Any]] | None = None,
) -> UserError | None:
    """Commit a checkpoint, every process taking part; return the error when it failed.

    The folder is in Hugging Face's format, with the optimizer and the logits of the best evaluation
    next to the weights: the best checkpoint becomes `model/` unchanged.
    """
    strategy, rank = STRATEGIES[config.strategy], accelerator.process_index
    writers = accelerator.num_processes if strategy.shards and store.is_shared else 1
    weights, moments = strategy.state(model, optimizer, writers)

    def write_own(folder: Path) -> Part:
        files = write_part(folder, weights, moments["state"], rank, writers)
        for file in files:
            sync_file(file)
        sizes = {name: tensor.nbytes for name, tensor in weights.items()}
        return Part(sizes, {file.name: entry_of(file) for file in files})

    failure = None
    begun = False
    if accelerator.is_main_process:

        def write(folder: Path) -> dict[str, Any]:
            nonlocal begun
            begun = True
            bare(model).save_pretrained(  # it deletes the parts that it finds
                folder,
                state_dict=weights if writers == 1 else {},
                save_original_format=False,  # else an old BERT's norms get their old names back
            )
            parts = [] if writers == 1 else _together(accelerator, folder, write_own)
            if parts:
                write_index(folder, [part.sizes for part in parts])
            torch.save({**moments, "state": {}} if parts else moments, folder / OPTIMIZER_FILE)
            record = {"train": state.as_dict(), "scheduler": scheduler.state_dict(), "scaler": None}
            if accelerator.scaler is not None:
                record["scaler"] = accelerator.scaler.state_dict()
            write_json(folder / STATE_FILE, record)
            for split, values in (predictions or {}).items():
                write_array(folder / PREDICTIONS / f"{split}.npy", values)
            return {name: entry for part in parts for name, entry in part.entries.items()}

        try:
            store.commit(state.step, write)
            newest = store.steps()[-KEPT_CHECKPOINTS:]
            store.keep({*newest, state.best_step or state.step})
        except SupersededError:
            raise
        except UserError as error:
            failure = error
        finally:
            if writers > 1 and not begun:  # the others wait for it
                _together(accelerator, None, write_own)
    elif writers > 1:
        _together(accelerator, None, write_own)
    return broadcast(accelerator, failure)  # type: ignore[no-any-return]


class Part(NamedTuple):
    """A worker's part of a checkpoint: bytes of its weights by name, manifest entries of its files."""

    sizes: dict[str, int]
    entries: dict[str, dict[str, Any]]


def _together(accelerator: Any, folder: Path | None, write: Callable[[Path], Part]) -> list[Part]:
    """Let every worker write into rank 0's `folder`; None calls it off.

    Raises:
        Exception: on rank 0, the first one that any of them met.
    """
    folder = broadcast(accelerator, folder)
    if folder is None:
        return []
    found: Part | Exception
    try:
        found = write(folder)
    except Exception as error:
        found = error
    parts: list[Any] = gather_object([found])
    for part in parts:
        if isinstance(part, Exception) and accelerator.is_main_process:
            raise part
    return parts


def load_checkpoint(
    config: TrainConfig,
    accelerator: Any,
    store: CheckpointStore,
    model: Any,
    optimizer: Any,
    scheduler: Any,
) -> TrainState:
    """Claim the run and resume from its newest valid checkpoint, or start at step 0."""
    found = None
    if accelerator.is_main_process:
        store.claim()
        found = store.newest()
    found = broadcast(accelerator, found)
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
