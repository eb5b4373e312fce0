"""The batch plan: which rows make which forward pass of which step. Pure numpy, no worker in sight.

A *step* is one optimizer update over `train_batch_size` rows. It is cut into *slots*, one forward
pass of `slot_size` rows each. Worker r of N runs the r-th N-th of the slots of every step; nothing
else about a run depends on N, so neither does its result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

WINDOW_STEPS = 8
"""Steps among which rows are sorted by length. Larger pads less; smaller keeps steps more random.

Of 64 steps 0.99 of what is computed is text (MRPC, slots of 8), of 8 steps 0.94, of one 0.74.
"""

PLAN_VERSION = 2
"""To be raised by whoever makes the same lengths and seed give other steps: a run begun with one plan
cannot go on with another, and is another run."""

Rows = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """All steps of a run over rows of the given lengths.

    `lengths` has shape [rows]: tokens per row. A plan is a function of its fields alone, so any
    step can be asked for at any time: resuming at step k replays nothing.
    """

    lengths: NDArray[np.int32]
    batch_size: int
    slot_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every row once; the smallest of them may be a partial one."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def slots_per_step(self) -> int:
        """Forward passes of one step, over all workers."""
        return self.batch_size // self.slot_size

    def epoch(self, epoch: int) -> "EpochPlan":
        """Plan of one pass: rows shuffled, sorted by length inside windows, then steps shuffled."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = rng.permutation(len(self.lengths))
        window = self.batch_size * WINDOW_STEPS
        # One by one and in place: sorting all rows at once takes several copies of them.
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            rows[:] = rows[np.argsort(self.lengths[rows], kind="stable")]
        return EpochPlan(self, order, rng.permutation(self.steps_per_epoch))

    def steps(self, first: int, last: int) -> Iterator[tuple[int, int, list[Rows]]]:
        """Yield (step, epoch, slots) for the steps `first` (0-based) up to, without, `last`."""
        epoch_plan, planned = None, -1
        for step in range(first, last):
            epoch, index = divmod(step, self.steps_per_epoch)
            if epoch_plan is None or epoch != planned:
                epoch_plan, planned = self.epoch(epoch), epoch
            yield step, epoch, epoch_plan.slots(index)


@dataclass(frozen=True)
class EpochPlan:
    """One pass over the rows: `order` holds them all, `starts` says which step comes when."""

    plan: Plan
    order: Rows
    starts: Rows

    def slots(self, index: int) -> list[Rows]:
        """Rows of each slot of the epoch's step `index`.

        Always `slots_per_step` arrays. The one partial step of an epoch is shared out evenly, so
        there some slots are smaller, or empty when it has fewer rows than slots.
        """
        size = self.plan.batch_size
        start = int(self.starts[index]) * size
        return np.array_split(self.order[start : start + size], self.plan.slots_per_step)


def share(slots: int, rank: int, world: int) -> range:
    """Which slots of a step process `rank` of `world` runs: as many as the others, side by side."""
    each = slots // world
    return range(rank * each, (rank + 1) * each)


def evaluation_batches(
    lengths: NDArray[np.int32], size: int, *, equal_lengths: bool = False
) -> list[Rows]:
    """Cut all rows into batches of at most `size`, longest first, so that each pads little.

    Every row is in exactly one batch. With `equal_lengths` only rows of one length share a batch.
    Longest first: a batch too large for memory fails at once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    groups = [order]
    if equal_lengths:
        groups = np.split(order, 1 + np.flatnonzero(np.diff(lengths[order])))
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def next_batch(
    lengths: NDArray[np.int32], token_budget: int, overhead_tokens: float, max_rows: int
) -> Rows:
    """Which of the waiting rows a free model takes now: always the oldest, and what pads well with it.

    `lengths` has shape [waiting]: tokens per row, oldest first. All that could share a pass with the
    oldest is cut, in order of length, into the batches that cost least together, and the oldest's is
    taken: the others are left such that they pad well too. A batch costs `overhead_tokens` (what a
    forward pass costs whatever it holds, in tokens) plus rows times the longest, which stays within
    `token_budget` unless it is one row. As the oldest always goes, no row is ever passed over by more
    batches than there were rows before it.

    The cheapest cut is found by dynamic programming, as the batch scheduler of TurboTransformers does
    (Fang et al., PPoPP 2021).

    Returns:
        Indices into `lengths`, shortest row first.
    """
    if len(lengths) == 1:
        return np.zeros(1, np.int64)
    order = np.argsort(lengths, kind="stable")
    oldest = int(np.flatnonzero(order == 0)[0])
    # So many rows a batch with the oldest can have at most.
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
    cheapest = np.zeros(len(order) + 1)  # cost of the best cut of so many rows, the shortest ones
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


def token_batches(lengths: NDArray[Any], budget: int, max_rows: int | None = None) -> list[Rows]:
    """Cut all rows into batches of at most `budget` padded tokens, longest first.

    Rows of similar length share a batch, so each pads little. Every row is in exactly one batch; a
    row longer than the budget is alone in its own.

    Args:
        lengths: Tokens per row, shape [rows].
        budget: Rows of a batch times its longest row, at most.
        max_rows: Rows of a batch, at most.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + min(size, max_rows or size)])
        start += len(batches[-1])
    return batches


def padded_length(longest: int, multiple: int, max_length: int, *, fixed: bool) -> int:
    """Tokens to which a slot is padded: its longest row rounded up, or always `max_length`."""
    return max_length if fixed else min(-(-longest // multiple) * multiple, max_length)


def slot_seed(seed: int, epoch: int, step: int, slot: int) -> int:
    """Seed of the dropout in one forward pass, whoever runs it.

    Numpy's SeedSequence spreads neighboring keys over unrelated streams.
    """
    return int(np.random.SeedSequence([seed, epoch, step, slot]).generate_state(1, np.uint64)[0])


def padding_efficiency(plan: Plan, multiple: int, max_length: int, *, fixed: bool) -> float:
    """Share of the first epoch's computed tokens that are text, not padding: between 0 and 1."""
    epoch = plan.epoch(0)
    computed: Any = 0
    for index in range(plan.steps_per_epoch):
        for rows in epoch.slots(index):
            if len(rows):
                longest = int(plan.lengths[rows].max())
                computed += len(rows) * padded_length(longest, multiple, max_length, fixed=fixed)
    return float(plan.lengths.sum() / computed)
