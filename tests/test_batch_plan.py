import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainyard.batch_plan import (
    Plan,
    TokenBudget,
    evaluation_batches,
    micro_batch_seed,
    padded_length,
    padding_efficiency,
    share,
    token_batches,
)

lengths_of_rows = st.lists(st.integers(1, 128), min_size=1, max_size=300)


def make_plan(
    lengths: list[int], micro_batches: int = 4, micro_batch_size: int = 4, seed: int = 0
) -> Plan:
    return Plan(
        np.array(lengths, np.int32), micro_batches * micro_batch_size, micro_batch_size, seed
    )


@settings(max_examples=60, deadline=None)
@given(lengths_of_rows, st.integers(1, 5), st.integers(1, 7), st.integers(0, 9), st.integers(0, 3))
def test_every_row_is_in_each_epoch_once(
    lengths: list[int], micro_batches: int, micro_batch_size: int, seed: int, epoch: int
) -> None:
    plan = make_plan(lengths, micro_batches, micro_batch_size, seed)
    steps = list(plan.steps(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch))
    assert [e for _, e, _ in steps] == [epoch] * plan.steps_per_epoch
    assert all(len(step_batches) == micro_batches for _, _, step_batches in steps)
    assert all(
        len(rows) <= micro_batch_size for _, _, step_batches in steps for rows in step_batches
    )
    seen = np.concatenate([rows for _, _, step_batches in steps for rows in step_batches])
    assert sorted(seen.tolist()) == list(range(len(lengths)))


@settings(max_examples=40, deadline=None)
@given(lengths_of_rows, st.integers(0, 40), st.integers(0, 40))
def test_a_plan_asked_from_the_middle_is_the_same_plan(
    lengths: list[int], start: int, more: int
) -> None:
    plan = make_plan(lengths)
    whole = list(plan.steps(0, start + more))[start:]
    resumed = list(plan.steps(start, start + more))
    assert [step for step, _, _ in whole] == [step for step, _, _ in resumed]
    for (_, _, a), (_, _, b) in zip(whole, resumed, strict=True):
        assert [rows.tolist() for rows in a] == [rows.tolist() for rows in b]


def test_epochs_and_seeds_differ() -> None:
    lengths = list(np.random.default_rng(0).integers(1, 60, 200))
    orders = {
        tuple(make_plan(lengths, seed=seed).epoch(epoch).order.tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_grouping_by_length_pads_less_than_chance() -> None:
    lengths = np.random.default_rng(0).integers(4, 120, 4000).astype(np.int32)
    grouped = padding_efficiency(Plan(lengths, 32, 8, 0), 1, 128, fixed=False)
    chance = np.random.default_rng(1).permutation(4000).reshape(-1, 8)
    assert grouped > 0.97
    assert lengths.sum() / (lengths[chance].max(axis=1) * 8).sum() < 0.7
    assert padding_efficiency(Plan(lengths, 32, 8, 0), 1, 128, fixed=True) == pytest.approx(
        lengths.mean() / 128
    )


def test_a_partial_step_is_shared_out_evenly() -> None:
    plan = make_plan([5] * 18, micro_batches=4, micro_batch_size=4)  # 16 rows and 2 rows
    sizes = sorted(
        [len(rows) for rows in micro_batches] for _, _, micro_batches in plan.steps(0, 2)
    )
    assert sizes == [[1, 1, 0, 0], [4, 4, 4, 4]]


@settings(max_examples=80, deadline=None)
@given(
    lengths_of_rows, st.integers(0, 3), st.integers(1, 7), st.integers(128, 800),
    st.sampled_from([1, 8]), st.booleans(),
)  # fmt: skip
def test_micro_batches_keep_a_token_budget(
    lengths: list[int], doublings: int, size: int, tokens: int, multiple: int, fixed: bool
) -> None:
    """Every row is in one of them, on any number of workers, and no smaller number would do."""
    rows_only = make_plan(lengths, 2**doublings, size)
    budget = TokenBudget(tokens, multiple, 128, fixed=fixed)
    plan = Plan(rows_only.lengths, rows_only.batch_size, size, rows_only.seed, budget)

    def fits(rows: NDArray[np.int64]) -> bool:
        longest = int(plan.lengths[rows].max(initial=0))
        return len(rows) * padded_length(longest, multiple, 128, fixed=fixed) <= tokens

    seen = []
    steps = range(plan.steps_per_epoch)
    for found, whole in zip(plan.steps(0, len(steps)), rows_only.steps(0, len(steps)), strict=True):
        step = np.concatenate(whole[2])
        assert np.concatenate(found[2]).tolist() == step.tolist()
        assert all(len(rows) <= size and fits(rows) for rows in found[2])
        times = len(found[2]) // len(whole[2])
        assert times * len(whole[2]) == len(found[2])
        assert times.bit_count() == 1  # the sum of gradients stays one tree
        assert times == 1 or not all(map(fits, np.array_split(step, len(found[2]) // 2)))
        for world in (2**n for n in range(doublings + 1)):
            mine = [place for rank in range(world) for place in share(len(found[2]), rank, world)]
            assert mine == list(range(len(found[2])))
        seen += step.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_only_long_rows_are_cut_into_more_micro_batches() -> None:
    lengths = np.repeat(np.array([10, 100], np.int32), 64)
    budget = TokenBudget(400, 1, 128, fixed=False)
    plan = Plan(lengths, 16, 8, 0, budget)
    sizes = {(int(lengths[step[0][0]]), *map(len, step)) for _, _, step in plan.steps(0, 8)}
    assert sizes == {(10, 8, 8), (100, 4, 4, 4, 4)}


@settings(max_examples=40, deadline=None)
@given(lengths_of_rows, st.integers(1, 50))
def test_evaluation_batches_hold_every_row_once_longest_first(
    lengths: list[int], size: int
) -> None:
    array = np.array(lengths, np.int32)
    batches = evaluation_batches(array, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == size for rows in batches[:-1])
    ordered = array[np.concatenate(batches)]
    assert (np.diff(ordered) <= 0).all()


@pytest.mark.parametrize(
    ("longest", "multiple", "limit", "fixed", "expected"),
    [(5, 8, 128, False, 8), (8, 8, 128, False, 8), (9, 1, 128, False, 9), (126, 8, 127, False, 127),
     (5, 8, 128, True, 128)],
)  # fmt: skip
def test_padded_length(longest: int, multiple: int, limit: int, fixed: bool, expected: int) -> None:
    assert padded_length(longest, multiple, limit, fixed=fixed) == expected


def test_seeds_of_micro_batches_do_not_collide() -> None:
    seeds = {
        micro_batch_seed(seed, epoch, step, micro_batch)
        for seed in range(4)
        for epoch in range(4)
        for step in range(40)
        for micro_batch in range(8)
    }
    assert len(seeds) == 4 * 4 * 40 * 8


@settings(max_examples=80, deadline=None)
@given(lengths_of_rows, st.integers(1, 600))
def test_token_batches_hold_every_row_once_and_keep_the_budget(
    lengths: list[int], budget: int
) -> None:
    every = np.array(lengths)
    batches = token_batches(every, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * every[batch].max() <= budget
    # Longest first and greedy: the next row would not have fitted.
    for batch, after in itertools.pairwise(batches):
        assert every[batch].min() >= every[after].max()
        assert (len(batch) + 1) * every[batch].max() > budget
