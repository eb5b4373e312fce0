"""Micro-batches of this process: rows of the plan, padded, as tensors."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from trainyard.batch_plan import Rows, padded_length, share
from trainyard.config import TrainConfig
from trainyard.data import TokenTable
from trainyard.models import Padding
from trainyard.storage import Stopwatch


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: index in the step, rows, their share of the step, and inputs."""

    index: int
    rows: Rows
    weight: float
    inputs: dict[str, torch.Tensor]


@dataclass(frozen=True)
class StepBatches:
    """Micro-batches of one step that this process runs.

    `step` counts from 0 over the run. `rows` is the number of rows of the step in all processes.
    """

    step: int
    epoch: int
    rows: int
    mine: list[MicroBatch]


class Gatherer:
    """Gathers this process's micro-batches of planned steps from the tokenized rows.

    Args:
        config: Flags of the run.
        table: Tokenized training rows.
        accelerator: Tells the rank, the number of processes and the device.
        padding: Padding of the model, see `probe`.
    """

    def __init__(
        self, config: TrainConfig, table: TokenTable, accelerator: Any, padding: Padding
    ) -> None:
        self._config, self._table, self._padding = config, table, padding
        self._accelerator = accelerator

    @property
    def gathers_ahead(self) -> bool:
        """True on a GPU. On CPUs, a gathering thread would slow down the computation."""
        return bool(self._accelerator.device.type != "cpu")

    def gathered(
        self, left: Iterator[tuple[int, int, list[Rows]]], stopwatch: Stopwatch
    ) -> Iterator[StepBatches]:
        """Yield the batches of each step that is `left`, as (step, epoch, micro-batches).

        If `gathers_ahead`, a thread gathers the batches of the next step during the current one.
        The time between two steps counts as `compute`, the wait for batches as `data`.
        """
        with ThreadPoolExecutor(1) if self.gathers_ahead else nullcontext() as thread:
            ahead = thread and thread.submit(self._step, next(left, None))
            while True:
                stopwatch.lap("compute")
                found = ahead.result() if ahead else self._step(next(left, None))
                if thread:
                    ahead = thread.submit(self._step, next(left, None))
                stopwatch.lap("data")
                if found is None:
                    return
                yield found

    def _step(self, planned: tuple[int, int, list[Rows]] | None) -> StepBatches | None:
        if planned is None:
            return None
        step, epoch, micro_batches = planned
        rows = sum(map(len, micro_batches))
        mine = share(
            len(micro_batches), self._accelerator.process_index, self._accelerator.num_processes
        )
        return StepBatches(step, epoch, rows, [self._gather(micro_batches, i, rows) for i in mine])

    def _gather(self, micro_batches: list[Rows], index: int, step_rows: int) -> MicroBatch:
        chosen = micro_batches[index]
        # A partial step can leave a micro-batch empty: its process still takes part, at weight zero.
        rows = chosen if len(chosen) else micro_batches[0][:1]
        width = padded_length(
            int(self._table.lengths[rows].max()),
            self._config.padding_multiple,
            self._config.max_length,
            fixed=self._config.pad_to_max_length,
        )
        arrays = self._table.gather(rows, width, self._padding)
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._accelerator.device.type == "cuda":  # the copy to the device then blocks nothing
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        return MicroBatch(index, rows, len(chosen) / step_rows, inputs)
