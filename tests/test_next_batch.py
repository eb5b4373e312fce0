"""Which waiting rows share a forward pass, and what passes are learned to cost."""

import asyncio
import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.batch_plan import next_batch
from trainyard.serving.replica.batcher import Batcher, CostModel

waiting_lengths = st.lists(st.integers(0, 512), min_size=1, max_size=200)


@settings(max_examples=200, deadline=None)
@given(waiting_lengths, st.integers(1, 4096), st.floats(0, 1000), st.integers(1, 64))
def test_a_batch_holds_the_oldest_fits_the_budget_and_is_a_run_of_lengths(
    lengths: list[int], budget: int, overhead: float, max_rows: int
) -> None:
    array = np.array(lengths, np.int32)
    batch = next_batch(array, budget, overhead, max_rows)
    assert 0 in batch
    assert len(set(batch.tolist())) == len(batch) <= max_rows
    assert len(batch) == 1 or len(batch) * array[batch].max() <= budget
    left_out = np.delete(array, batch)
    assert not ((left_out > array[batch].min()) & (left_out < array[batch].max())).any()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(60, 300),
    st.integers(0, 100),
    st.integers(1, 5),
)
def test_no_other_way_to_cut_what_waits_costs_less(
    lengths: list[int], budget: int, overhead: int, max_rows: int
) -> None:
    reach = min(max_rows, budget // lengths[0])
    if len(lengths) > reach:  # what is too far from the oldest to share its pass is left alone
        lengths = lengths[:reach]
    ascending = sorted(lengths)
    chosen = next_batch(np.array(lengths, np.int32), budget, overhead, max_rows)
    taken = sorted(lengths[i] for i in chosen)
    costs = {}
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [len(lengths)]
        batches = [ascending[a:b] for a, b in itertools.pairwise([0, *ends])]
        if all(len(b) == 1 or (len(b) <= max_rows and len(b) * b[-1] <= budget) for b in batches):
            cost = sum(overhead + len(b) * b[-1] for b in batches)
            costs[tuple(map(tuple, batches))] = cost
    best = min(costs.values())
    assert any(cost == best and tuple(taken) in batches for batches, cost in costs.items())


def test_rows_of_one_length_go_together_and_distant_lengths_apart() -> None:
    lengths = np.array([10, 200, 10, 210, 10, 205], np.int32)
    assert sorted(next_batch(lengths, 4096, 20.0, 64).tolist()) == [0, 2, 4]
    assert sorted(next_batch(lengths[1:], 4096, 20.0, 64).tolist()) == [0, 2, 4]
    # Where a pass costs much whatever it holds, one pass for all is cheaper.
    assert len(next_batch(lengths, 4096, 100_000.0, 64)) == 6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nothing_starves_however_the_rest_suits_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    waiting = [
        (0, 500),
        *((i, 8) for i in range(1, 6)),
    ]  # (number, length); the long one is not first
    waiting = waiting[1:4] + waiting[:1] + waiting[4:]
    batches = 0
    while any(number == 0 for number, _ in waiting):
        chosen = next_batch(np.array([length for _, length in waiting]), 64, 5.0, 4)
        waiting = [item for i, item in enumerate(waiting) if i not in set(chosen.tolist())]
        waiting += [(9, 8)] * int(rng.integers(1, 9))  # short rows arrive faster than they go
        batches += 1
    assert batches <= 4  # three rows were before it


def test_the_cost_of_passes_is_learned() -> None:
    cost = CostModel()
    assert cost.line() == (0.0, 0.0)
    cost.observe(100, 0.02)
    assert cost.line() == pytest.approx((0.0, 0.0002))
    for tokens in [10, 400, 35, 90, 1000] * 20:
        cost.observe(tokens, 0.004 + tokens * 1e-5)
    assert cost.line() == pytest.approx((0.004, 1e-5), rel=0.05)
    assert cost.overhead_tokens() == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("own_thread", [True, False])
def test_waiting_for_a_core_does_not_join_distant_lengths(own_thread: bool) -> None:
    """A pass that waits long and computes little is dear to who waits; what it costs is the little."""
    passes: list[list[int]] = []

    def forward(rows: list[int], busy: int) -> list[int]:
        del busy
        passes.append(rows)
        end = time.thread_time() + len(rows) * max(rows) * 2e-5
        while time.thread_time() < end:
            pass
        time.sleep(0.1)  # other processes have the cores
        return rows

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(
            forward, lambda row: row, own_thread=lambda _: own_thread
        )
        for rows in ([10], [50, 50], [200]):
            await batcher.submit(rows)
        first: Any = asyncio.create_task(batcher.submit([100]))
        await asyncio.sleep(0.02)  # the rest arrives while it runs
        await asyncio.gather(first, *(batcher.submit([row]) for row in (10, 300, 10, 300, 10)))
        batcher.close()

    asyncio.run(run())
    assert [sorted(rows) for rows in passes[4:]] == (
        [[10, 10, 10], [300, 300]] if own_thread else [[10, 10, 10, 300, 300]]
    )
