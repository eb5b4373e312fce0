"""Save checkpoints while training continues.

Training pauses only while the checkpoint's content is copied into host memory. A thread then
writes, hashes, syncs and commits the copies. It reads nothing that training changes.
"""

import copy
import logging
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from trainyard.cluster import GROUP_SECONDS
from trainyard.config import TrainConfig
from trainyard.errors import Diverged, SupersededError, UserError, one_line
from trainyard.storage import (
    CheckpointStore,
    write_array,
    write_json,
)
from trainyard.training.outcome import STATE_FILE, TrainState
from trainyard.training.worker.state import PREDICTIONS, broadcast_result, sendable
from trainyard.training.worker.strategies import STRATEGIES
from trainyard.training.worker.weights import (
    OPTIMIZER_FILE,
    bare,
    write_config,
    write_index,
    write_part,
    write_weights,
)

KEPT_CHECKPOINTS = 2
"""Number of newest checkpoints kept next to the best: the second replaces a damaged first."""

log = logging.getLogger(__name__)


class HostMemory:
    """Copies of tensors in host memory; each save reuses the buffers of the one before.

    Buffers for GPU tensors are pinned, so the host can request the next copies before one is done.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._used = 0
        self._from_gpu = False

    def rewind(self) -> None:
        """Use the buffers again, in the same order."""
        self._used = 0

    def copy(self, tensor: torch.Tensor, *, at_once: bool = False) -> torch.Tensor:
        """Return a copy; it is complete after `wait`, or immediately if `at_once`."""
        if self._used == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._used]
        if (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[self._used] = buffer
        self._used += 1
        self._from_gpu |= tensor.is_cuda
        return buffer.copy_(tensor.detach(), non_blocking=not at_once)

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self._from_gpu:
            torch.cuda.synchronize()


class Part(NamedTuple):
    """One worker's part of a checkpoint: bytes of weights by name, manifest entries of files."""

    sizes: dict[str, int]
    entries: dict[str, dict[str, Any]]


class Snapshot(NamedTuple):
    """Part of a checkpoint that one process writes; training does not change it."""

    step: int
    best_step: int
    model: Any
    """The live model. The thread reads only its configs, its dtype and the names of its parameters."""
    weights: dict[str, torch.Tensor]
    moments: dict[str, Any]
    """The optimizer's state; where processes write parts of it, "state" holds its tensors."""
    record: dict[str, Any]
    predictions: Mapping[str, NDArray[Any]]


WRITE_SECONDS = 3 * GROUP_SECONDS
"""Maximum seconds that the writers of a checkpoint's parts wait for the slowest one.

In a bucket this includes the upload of its part."""


class CheckpointWriter:
    """Write one checkpoint at a time, in a thread.

    All processes must call `begin` and `join` in the same order. With fsdp and deepspeed, each
    process writes a part; else rank 0 writes all. Threads that write parts have a separate process
    group, so their messages never mix with those of training.
    """

    def __init__(self, config: TrainConfig, accelerator: Any, store: CheckpointStore) -> None:
        self._strategy = STRATEGIES[config.strategy]
        self._accelerator, self._store = accelerator, store
        self._main: bool = accelerator.is_main_process
        self._writers: int = accelerator.num_processes if self._strategy.shards else 1
        self._group = None
        if self._writers > 1:
            patience = timedelta(seconds=WRITE_SECONDS)
            self._group = dist.new_group(backend="gloo", timeout=patience)
        self._memory = HostMemory()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._begun = self._met_others = False
        self._writing: Future[UserError | None] | None = None

    def begin(
        self,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        state: TrainState,
        predictions: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Copy the content of a checkpoint, and write it in the thread.

        The folder is in Hugging Face's format, with the optimizer and the logits of the best
        evaluation next to the weights.

        Raises:
            RuntimeError: The checkpoint before was not joined.
        """
        if self._begun:
            raise RuntimeError("the checkpoint before is still being written")
        self._begun = True
        if not (self._main or self._strategy.shards):
            return  # rank 0 has all
        self._memory.rewind()
        weights, moments = self._strategy.state(model, optimizer, self._writers, self._memory.copy)
        record = {"train": state.as_dict(), "scheduler": scheduler.state_dict(), "scaler": None}
        if self._accelerator.scaler is not None:
            record["scaler"] = self._accelerator.scaler.state_dict()
        snapshot = Snapshot(
            state.step,
            state.best_step or state.step,
            bare(model),
            weights,
            {
                key: moments[key] if key == "state" else copy.deepcopy(moments[key])
                for key in moments
            },
            copy.deepcopy(record),
            predictions or {},
        )
        self._memory.wait()
        write = self._commit if self._main else self._write_with_rank_0
        self._writing = self._thread.submit(write, snapshot)

    @property
    def has_failed(self) -> bool:
        """True if this process's part of the checkpoint ended with an error."""
        writing = self._writing
        if writing is None or not writing.done():
            return False
        return writing.exception() is not None or writing.result() is not None

    def join(self) -> UserError | None:
        """Wait until the checkpoint is committed; return the error if that failed.

        Raises:
            SupersededError: Another driver or a newer attempt has claimed the run.
        """
        if not self._begun:
            return None
        self._begun = False
        writing = self._take()
        # Rank 0's part ends last: it gathers the others.
        failure: UserError | None = broadcast_result(
            self._accelerator, writing if self._main else None
        )
        if writing is not None:
            writing.result()
        return failure

    def close(self) -> None:
        """Let the thread finish its checkpoint, and end it; this needs no other process."""
        failure: Exception | None
        try:
            writing = self._take()
            failure = None if writing is None else writing.result()
        except Exception as error:  # another one ends the attempt
            failure = error
        if failure is not None:
            log.warning("the last checkpoint was not written: %s", failure)
        self._thread.shutdown()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def _take(self) -> Future[UserError | None] | None:
        writing, self._writing = self._writing, None
        return writing

    def _commit(self, snapshot: Snapshot) -> UserError | None:
        """Write and commit a checkpoint as rank 0; return the error if that failed."""
        self._met_others = False
        try:
            self._store.commit(snapshot.step, lambda folder: self._write(folder, snapshot))
            # Later checkpoints are damaged, since the run resumed before them, or a successor's.
            steps = [step for step in self._store.steps() if step <= snapshot.step]
            kept = {*steps[-KEPT_CHECKPOINTS:], snapshot.best_step}
            self._store.keep(kept, until=snapshot.step)
        except SupersededError:
            raise
        except UserError as error:
            return error
        finally:
            if self._writers > 1 and not self._met_others:  # they wait for the attempt
                self._together(None, snapshot)
        return None

    def _write_with_rank_0(self, snapshot: Snapshot) -> UserError | None:
        self._together(None, snapshot)
        return None

    def _write(self, folder: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Fill a checkpoint's folder as rank 0; return the manifest entries of all parts."""
        write_config(folder, snapshot.model)
        write_json(folder / STATE_FILE, snapshot.record)
        for split, values in snapshot.predictions.items():
            write_array(folder / PREDICTIONS / f"{split}.npy", values)
        if self._writers == 1:
            self._write_files(folder, snapshot)
            torch.save(snapshot.moments, folder / OPTIMIZER_FILE)
            return {}
        torch.save({**snapshot.moments, "state": {}}, folder / OPTIMIZER_FILE)
        parts = self._together(self._store.attempt, snapshot)
        write_index(folder, [part.sizes for part in parts])
        return {name: entry for part in parts for name, entry in part.entries.items()}

    def _write_files(self, folder: Path, snapshot: Snapshot) -> list[Path]:
        """Write this process's weights, and its moments where each process writes a part.

        Raises:
            Diverged: A weight is not finite. The loss does not show it: it predates the update.
        """
        if (name := _not_finite(snapshot)) is not None:
            raise diverged(f"after step {snapshot.step} the weight {name} holds NaN or infinity")
        if self._writers == 1:
            return [write_weights(folder, snapshot.weights)]
        moments, rank = snapshot.moments["state"], self._accelerator.process_index
        return write_part(folder, snapshot.weights, moments, rank, self._writers)

    def _together(self, attempt: str | None, snapshot: Snapshot) -> list[Part]:
        """Write the parts of all processes for rank 0's `attempt`; return them on rank 0.

        Without an `attempt` on rank 0, nothing is written.

        Raises:
            Diverged: A weight of any process is not finite; rank 0 names the same one for any number
                of processes.
            Exception: A thread failed otherwise; rank 0 raises the first exception of any of them.
        """
        self._met_others = True
        message = [attempt]
        dist.broadcast_object_list(message, src=0, group=self._group)
        if (attempt := message[0]) is None:
            return []
        found: Part | Exception
        try:
            entries = self._store.write_part(
                snapshot.step, attempt, lambda folder: self._write_files(folder, snapshot)
            )
            sizes = {name: tensor.nbytes for name, tensor in snapshot.weights.items()}
            found = Part(sizes, entries)
        except Exception as error:
            log.warning("this worker's part of the checkpoint failed: %s", one_line(error))
            found = sendable(error)
        parts: list[Any] | None = [None] * self._writers if self._main else None
        dist.gather_object(found, parts, dst=0, group=self._group)
        errors = [part for part in parts or [] if isinstance(part, Exception)]
        if errors:
            raise min((e for e in errors if isinstance(e, Diverged)), key=str, default=errors[0])
        return parts or []


def _not_finite(snapshot: Snapshot) -> str | None:
    """Return the first name, in alphabetical order, of a parameter that is not finite; else None."""
    parameters = {name for name, _ in snapshot.model.named_parameters(remove_duplicate=False)}
    for name, tensor in sorted(snapshot.weights.items()):
        if name in parameters and tensor.numel():
            low, high = torch.aminmax(tensor)  # both are NaN if one value is
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None


def diverged(what: str) -> Diverged:
    """Build the error of a run whose numbers are not finite; `what` says which."""
    return Diverged(
        f"{what}; lower --learning-rate or add --warmup-steps (the checkpoints before that step are "
        "kept)"
    )
