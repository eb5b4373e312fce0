"""The batch plan: the rows of every forward pass of every step. Pure numpy, independent of workers.

A *step* is one optimizer update over `train_batch_size` rows. It is cut into *micro-batches*, each one
forward pass over `micro_batch_size` rows. Worker r of N runs the r-th share of every step's
micro-batches. Nothing else in a run depends on N, so its result does not either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

WINDOW_STEPS = 8
"""Steps in a window, in which rows are sorted by length. Larger pads less; smaller is more random."""

PLAN_VERSION = 2
"""Version of the plan; raise it when the same lengths and seed give other steps. A run that began with
one version cannot resume with another."""

Rows = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """All steps of a run over rows of the given lengths.

    `lengths` has shape [rows]: tokens per row. A plan is a function of its fields alone, so any step
    can be computed at any time: resuming at step k replays nothing.
    """

    lengths: NDArray[np.int32]
    batch_size: int
    micro_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that use every row once; one of them may be partial."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """Forward passes of one step, over all workers."""
        return self.batch_size // self.micro_batch_size

    def epoch(self, epoch: int) -> "EpochPlan":
        """Plan one epoch: shuffle rows, sort them by length inside windows, then shuffle steps."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = rng.permutation(len(self.lengths))
        window = self.batch_size * WINDOW_STEPS
        # Window by window and in place: sorting all rows at once takes several copies of them.
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            rows[:] = rows[np.argsort(self.lengths[rows], kind="stable")]
        return EpochPlan(self, order, rng.permutation(self.steps_per_epoch))

    def steps(self, first: int, last: int) -> Iterator[tuple[int, int, list[Rows]]]:
        """Yield (step, epoch, micro-batches) for steps from `first` (0-based) up to, without, `last`."""
        epoch_plan, planned = None, -1
        for step in range(first, last):
            epoch, index = divmod(step, self.steps_per_epoch)
            if epoch_plan is None or epoch != planned:
                epoch_plan, planned = self.epoch(epoch), epoch
            yield step, epoch, epoch_plan.micro_batches(index)


@dataclass(frozen=True)
class EpochPlan:
    """One pass over the rows: `order` holds all of them, `starts` the order of the steps."""

    plan: Plan
    order: Rows
    starts: Rows

    def micro_batches(self, index: int) -> list[Rows]:
        """Rows of each micro-batch of the epoch's step `index`: `micro_batches_per_step` arrays.

        The partial step of an epoch is shared out evenly. Its micro-batches are smaller, and some are
        empty when there are fewer rows than micro-batches.
        """
        size = self.plan.batch_size
        start = int(self.starts[index]) * size
        return np.array_split(self.order[start : start + size], self.plan.micro_batches_per_step)


def share(micro_batches: int, rank: int, world: int) -> range:
    """Indices of the micro-batches of a step that process `rank` of `world` runs: an equal share."""
    each = micro_batches // world
    return range(rank * each, (rank + 1) * each)


def evaluation_batches(
    lengths: NDArray[np.int32], size: int, *, equal_lengths: bool = False
) -> list[Rows]:
    """Cut all rows into batches of at most `size` with little padding; every row is in exactly one.

    With `equal_lengths` only rows of one length share a batch. Longest rows first: a batch that is too
    large for memory fails at once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    groups = [order]
    if equal_lengths:
        groups = np.split(order, 1 + np.flatnonzero(np.diff(lengths[order])))
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def next_batch(
    lengths: NDArray[np.int32], token_budget: int, overhead_tokens: float, max_rows: int
) -> Rows:
    """Choose the next batch from the waiting rows: the oldest, and the rows that pad well with it.

    All rows that could share a pass with the oldest are cut, in order of length, into the batches that
    cost least together. The batch of the oldest row is returned, so the rest pads well too. A batch
    costs `overhead_tokens` plus rows times its longest row. As the oldest row always goes, a row waits
    for at most one batch for each row before it.

    Dynamic programming finds the cheapest cut, as in the batch scheduler of TurboTransformers (Fang et
    al., PPoPP 2021).

    Args:
        lengths: Tokens per row, oldest row first, shape [waiting].
        token_budget: Maximum of rows times the longest row, unless a batch is one row.
        overhead_tokens: Fixed cost of a forward pass, in tokens.
        max_rows: Maximum rows of a batch.

    Returns:
        Indices into `lengths`, shortest row first.
    """
    if len(lengths) == 1:
        return np.zeros(1, np.int64)
    order = np.argsort(lengths, kind="stable")
    oldest = int(np.flatnonzero(order == 0)[0])
    # Maximum rows of a batch with the oldest row.
    reach = min(max_rows, max(1, token_budget // max(1, int(lengths[0]))))
    low = max(0, oldest - reach + 1)
    order = order[low : oldest + reach]
    oldest -= low
    longest = lengths[order].astype(np.int64)
    first, last = np.arange(len(order))[:, None], np.arange(len(order))[None, :]
    rows = last - first + 1
    padded = rows * longest
    fits = (rows == 1) | ((rows > 1) & (rows <= max_rows) & (padded <= token_budget))
    cost = np.where(fits, overhead_tokens + padded, np.inf)  # of the batch from first to last
    cheapest = np.zeros(len(order) + 1)  # cost of the best cut of the n shortest rows
    begin = np.zeros(len(order), np.int64)  # where that cut's last batch begins
    for end in range(len(order)):
        cut = cheapest[: end + 1] + cost[: end + 1, end]
        # Of equal cuts the first has the largest batch: rows of one length go together.
        begin[end] = np.argmin(cut)
        cheapest[end + 1] = cut[begin[end]]
    end = len(order) - 1
    while begin[end] > oldest:
        end = int(begin[end]) - 1
    return order[begin[end] : end + 1]


def token_batches(lengths: NDArray[Any], budget: int) -> list[Rows]:
    """Cut all rows into batches of at most `budget` padded tokens, longest rows first.

    Rows of similar length share a batch. Every row is in exactly one batch; a row that is longer than
    the budget has a batch alone. `lengths` holds the tokens of each row, shape [rows].
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += len(batches[-1])
    return batches


def padded_length(longest: int, multiple: int, max_length: int, *, fixed: bool) -> int:
    """Padded length of a micro-batch: its longest row, rounded up, or always `max_length`."""
    return max_length if fixed else min(-(-longest // multiple) * multiple, max_length)


def micro_batch_seed(seed: int, epoch: int, step: int, micro_batch: int) -> int:
    """Dropout seed of one forward pass; the same on any process.

    Numpy's SeedSequence maps neighboring keys to unrelated streams.
    """
    return int(
        np.random.SeedSequence([seed, epoch, step, micro_batch]).generate_state(1, np.uint64)[0]
    )


def padding_efficiency(plan: Plan, multiple: int, max_length: int, *, fixed: bool) -> float:
    """Share of text among the first epoch's computed tokens, from 0 to 1; the rest is padding."""
    epoch = plan.epoch(0)
    computed: Any = 0
    for index in range(plan.steps_per_epoch):
        for rows in epoch.micro_batches(index):
            if len(rows):
                longest = int(plan.lengths[rows].max())
                computed += len(rows) * padded_length(longest, multiple, max_length, fixed=fixed)
    return float(plan.lengths.sum() / computed)
