"""Batch plans: the rows of each forward pass in training, evaluation and serving. Pure numpy.

A *step* is one optimizer update over at most `batch_size` rows. It is cut into *micro-batches*,
each one forward pass over at most `micro_batch_size` rows and, optionally, a limited number of
padded tokens. Worker r of N runs the r-th equal share of every step's micro-batches. Nothing else
depends on N, so the result of a run does not depend on N either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

WINDOW_STEPS = 8
"""Steps per window. Rows are sorted by length within a window: more steps mean less padding, and
less shuffling."""

PLAN_VERSION = 2
"""Version of the plan. Raise it when a change to the code alters the plan of the same lengths and
seed. A run can only be resumed under the version that it started with."""

Rows = NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class TokenBudget:
    """Maximum padded tokens of a micro-batch, under the padding that its rows get.

    `tokens` is at least `max_length`, so that every row fits alone. The other fields are the
    arguments of `padded_length`.
    """

    tokens: int
    multiple: int
    max_length: int
    fixed: bool

    def holds(self, rows: int, longest: int) -> bool:
        """Return whether `rows` rows, the longest of `longest` tokens, fit into one micro-batch."""
        width = padded_length(longest, self.multiple, self.max_length, fixed=self.fixed)
        return rows * width <= self.tokens


@dataclass(frozen=True)
class Plan:
    """Plan of all steps of a run: a pure function of its fields.

    `lengths` holds the tokens of each row, shape [rows]. Any step can be computed directly, so
    resuming at step k replays no earlier step.
    """

    lengths: NDArray[np.int32]
    batch_size: int
    micro_batch_size: int
    seed: int
    budget: TokenBudget | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, a partial step included."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches per step, over all workers; a budget multiplies it in some steps."""
        return self.batch_size // self.micro_batch_size

    def epoch(self, epoch: int) -> "EpochPlan":
        """Plan one epoch: shuffle rows, sort them by length inside windows, then shuffle steps."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = rng.permutation(len(self.lengths))
        window = self.batch_size * WINDOW_STEPS
        # Sort window by window in place: sorting all rows at once would copy all of them several
        # times.
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            rows[:] = rows[np.argsort(self.lengths[rows], kind="stable")]
        return EpochPlan(self, order, rng.permutation(self.steps_per_epoch))

    def steps(self, first: int, last: int) -> Iterator[tuple[int, int, list[Rows]]]:
        """Yield (step, epoch, rows of each micro-batch) for the steps in range(`first`, `last`)."""
        epoch_plan, planned = None, -1
        for step in range(first, last):
            epoch, index = divmod(step, self.steps_per_epoch)
            if epoch_plan is None or epoch != planned:
                epoch_plan, planned = self.epoch(epoch), epoch
            yield step, epoch, epoch_plan.micro_batches(index)


@dataclass(frozen=True)
class EpochPlan:
    """Plan of one pass over all rows.

    Attributes:
        plan: Plan of the run.
        order: All rows, shape [rows]. Each consecutive block of `plan.batch_size` rows is one step.
        starts: Index of the block of `order` for each step, a permutation, shape [steps per epoch].
    """

    plan: Plan
    order: Rows
    starts: Rows

    def micro_batches(self, index: int) -> list[Rows]:
        """Return the rows of each micro-batch of step `index` of the epoch.

        The list has `micro_batches_per_step` arrays. If one exceeds the budget, it has 2, 4, 8 …
        times as many, the fewest that keep the budget. A power of two leaves the sum of gradients
        the same tree for every number of workers. The rows of a step are divided evenly, so some
        arrays are empty if it has fewer rows than micro-batches.
        """
        plan = self.plan
        start = int(self.starts[index]) * plan.batch_size
        step = self.order[start : start + plan.batch_size]
        count = plan.micro_batches_per_step
        while True:
            found = np.array_split(step, count)
            # Rows of a step are sorted by length, so the last one of a micro-batch is its longest.
            if plan.budget is None or all(
                plan.budget.holds(len(rows), int(plan.lengths[rows[-1]]))
                for rows in found
                if len(rows)
            ):
                return found
            count *= 2


def share(micro_batches: int, rank: int, world: int) -> range:
    """Return the range of a step's micro-batches that belongs to worker `rank` of `world` workers.

    `micro_batches` must be a multiple of `world`: any remainder would be skipped.
    """
    each = micro_batches // world
    return range(rank * each, (rank + 1) * each)


def evaluation_batches(
    lengths: NDArray[np.int32], size: int, *, equal_lengths: bool = False
) -> list[Rows]:
    """Cut all rows into batches of at most `size` rows of similar length.

    Each row is in exactly one batch. With `equal_lengths`, all rows of a batch have the same
    length. The longest rows come first, so a batch that does not fit into memory fails at once.
    `lengths` holds the tokens of each row, shape [rows].
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    groups = [order]
    if equal_lengths:
        groups = np.split(order, 1 + np.flatnonzero(np.diff(lengths[order])))
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def next_batch(
    lengths: NDArray[np.int32], token_budget: int, overhead_tokens: float, max_rows: int
) -> Rows:
    """Choose the next batch of waiting rows: the oldest row, and rows of similar length.

    The rows that could share a batch with the oldest row are sorted by length, then partitioned
    into batches of minimum total cost. A batch costs `overhead_tokens` plus its rows times the
    tokens of its longest row. The batch that holds the oldest row is returned. So a row waits for
    at most one batch per older row.

    Dynamic programming finds the cheapest partition, as in the batch scheduler of TurboTransformers
    (Fang et al., PPoPP 2021).

    Args:
        lengths: Tokens per row, oldest row first, shape [waiting].
        token_budget: Maximum padded tokens of a batch: rows times the longest row. One row may
            exceed it.
        overhead_tokens: Fixed cost of a forward pass, in tokens.
        max_rows: Maximum rows of a batch.

    Returns:
        Indices into `lengths`, shortest row first.
    """
    if len(lengths) == 1:
        return np.zeros(1, np.int64)
    order = np.argsort(lengths, kind="stable")
    oldest = int(np.flatnonzero(order == 0)[0])
    # Maximum rows of a batch that holds the oldest row.
    reach = min(max_rows, max(1, token_budget // max(1, int(lengths[0]))))
    low = max(0, oldest - reach + 1)
    order = order[low : oldest + reach]
    oldest -= low
    longest = lengths[order].astype(np.int64)
    first, last = np.arange(len(order))[:, None], np.arange(len(order))[None, :]
    rows = last - first + 1
    padded = rows * longest
    fits = (rows == 1) | ((rows > 1) & (rows <= max_rows) & (padded <= token_budget))
    cost = np.where(fits, overhead_tokens + padded, np.inf)  # [first row, last row] of a batch
    cheapest = np.zeros(len(order) + 1)  # cost of the best partition of the n shortest rows
    begin = np.zeros(len(order), np.int64)  # first row of its last batch
    for end in range(len(order)):
        cut = cheapest[: end + 1] + cost[: end + 1, end]
        # Of equally cheap partitions, argmin takes the one with the largest last batch.
        begin[end] = np.argmin(cut)
        cheapest[end + 1] = cut[begin[end]]
    end = len(order) - 1
    while begin[end] > oldest:
        end = int(begin[end]) - 1
    return order[begin[end] : end + 1]


def token_batches(lengths: NDArray[Any], budget: int) -> list[Rows]:
    """Cut all rows into batches of at most `budget` padded tokens, longest rows first.

    Rows of similar length share a batch. Each row is in exactly one batch; a row longer than
    `budget` is a batch alone. `lengths` holds the tokens of each row, shape [rows].
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
    """Return the padded length of a batch, in tokens.

    It is `longest`, rounded up to a multiple of `multiple`, and at most `max_length`. If `fixed`,
    it is always `max_length`.
    """
    return max_length if fixed else min(-(-longest // multiple) * multiple, max_length)


def micro_batch_seed(seed: int, epoch: int, step: int, micro_batch: int) -> int:
    """Return the 64-bit dropout seed of one forward pass; it is the same in every process.

    Numpy's SeedSequence hashes the four numbers, so neighboring passes have unrelated random
    streams.
    """
    return int(
        np.random.SeedSequence([seed, epoch, step, micro_batch]).generate_state(1, np.uint64)[0]
    )


def padding_efficiency(plan: Plan, multiple: int, max_length: int, *, fixed: bool) -> float:
    """Return the share of non-padding tokens among all tokens of the first epoch, from 0 to 1."""
    epoch = plan.epoch(0)
    computed: Any = 0
    for index in range(plan.steps_per_epoch):
        for rows in epoch.micro_batches(index):
            if len(rows):
                longest = int(plan.lengths[rows].max())
                computed += len(rows) * padded_length(longest, multiple, max_length, fixed=fixed)
    return float(plan.lengths.sum() / computed)
