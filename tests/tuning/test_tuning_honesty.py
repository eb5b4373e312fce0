"""What a sweep claims, against a world whose truth is known: hundreds of synthetic sweeps a case.

`benchmarks/check_statistics.py --only sweeps` runs the whole grid.
"""

import dataclasses

import numpy as np
import pytest
from synthetic_sweeps import Cell, World, is_honest, simulate

from trainyard.tuning import honesty
from trainyard.tuning.honesty import SplitPredictions, confidence_of, confirm

WORLDS = 400


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(honesty, "RESAMPLES", 100)


CASES = {
    # The first two were wrong 13 and 8 times in 100, and covered 84, when candidates were chosen and
    # confirmed on the same rows.
    "many trials with taste": Cell(48, 1.0, 1, 8, 300),
    "more trials, fewer seeds": Cell(100, 1.0, 1, 3, 300),
    "few rows": Cell(24, 1.0, 2, 3, 100),
    "unsteady seeds, four candidates": Cell(6, 0.0, 4, 10, 400, seed_spread=0.3),
    "extended": Cell(24, 1.0, 1, 10, 300, 0.02, extended_to=96),
    "two seeds": Cell(24, 1.0, 2, 2, 300, seed_spread=0.2),
    "different": Cell(12, 0.2, 2, 3, 300, 0.15, skill_spread=0.4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_claim_is_true(case: str) -> None:
    cell = CASES[case]
    found = simulate(cell, WORLDS, seed=1)
    assert is_honest(found), found
    assert abs(found["bias"]) < 0.3 * found["naive_bias"]
    if cell.skill_spread:
        assert found["better"][0] > 0.3  # it can see what is there
    if cell.seeds == 2:
        assert found["better"][0] == 0  # no verdict


def test_choosing_and_confirming_on_the_same_rows_is_found_out() -> None:
    """The check itself: a search that sees the confirmation rows must fail it."""
    rng, better, cell = np.random.default_rng(0), 0, Cell(200, 1.0, 1, 5, 300)
    for _ in range(100):
        world = World(cell, rng)
        world.searched_scores = world.runs(range(1, 201), 1)[0][:, 0, ~world.searched].mean(axis=1)
        better += world.claim(200).found.verdict == "better"
    assert better > 10


def test_all_looks_together_are_wrong_at_most_5_times_in_100() -> None:
    errors = [1 - confidence_of(look) for look in range(1, 30)]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) < 0.05
    cell = Cell(6, 0.2, 1, 5, 300)
    first, second = (World(cell, np.random.default_rng(3)).claim(6, look=n).found for n in (1, 2))
    assert second.difference_interval[1] - second.difference_interval[0] > (
        first.difference_interval[1] - first.difference_interval[0]
    )


def test_the_same_runs_give_the_same_verdict() -> None:
    cell = Cell(12, 0.1, 2, 3, 300, 0.1, 0.3)
    one, two = (World(cell, np.random.default_rng(3)).claim(12).found for _ in range(2))
    assert one == two


def test_fewer_than_three_seeds_cover_rows_only() -> None:
    world = World(Cell(12, 0.2, 2, 3, 300, 0.3, 0.4), np.random.default_rng(0))
    three = world.claim(12).found
    assert (three.covers, three.verdict is None) == ("rows and seeds", False)
    few = World(dataclasses.replace(world.cell, seeds=2), np.random.default_rng(0)).claim(12).found
    assert (few.covers, few.verdict) == ("rows", None)


def test_searched_rows_choose_and_only_the_others_are_scored() -> None:
    """A candidate that is right on all searched rows wins, and its score is that of the others."""
    labels = np.arange(400) % 2
    searched = np.arange(400) < 200
    fits_search = np.where(searched | (np.arange(400) % 4 == 0), labels, 1 - labels)
    fits_rest = np.where(searched & (np.arange(400) % 2 == 0), 1 - labels, labels)
    runs = [[labels] * 3, [fits_rest] * 3, [fits_search] * 3]
    found = confirm([SplitPredictions("accuracy", runs, labels, searched)])
    assert (found.winner, found.corrected, found.default) == (1, 0.25, 1.0)
    assert found.verdict == "worse"


def test_a_candidate_is_scored_with_seeds_that_did_not_pick_it() -> None:
    """Each of two equal candidates is right with every other seed: whichever is picked was lucky."""
    labels = np.arange(400) % 2
    good, bad = labels, np.where(np.arange(400) % 4 < 2, labels, 1 - labels)
    runs = [[bad] * 4, [good, bad, good, bad], [bad, good, bad, good]]
    found = confirm([SplitPredictions("accuracy", runs, labels, np.arange(400) < 200)])
    assert found.corrected == 0.5  # 0.75 is the mean, and 1.0 the score with the seeds that picked


def test_a_winner_among_several_has_a_wider_interval() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    runs = [np.where(rng.random(400) < share, labels, 1 - labels) for share in (0.6, 0.7, 0.8, 0.9)]
    one, two = (
        confirm([SplitPredictions("accuracy", [runs] * (1 + n), labels, np.arange(400) < 200)])
        for n in (1, 2)
    )
    assert one.corrected == two.corrected
    assert two.interval[0] < one.interval[0] < one.interval[1] < two.interval[1]
    assert two.default_interval == one.default_interval


def test_runs_that_agree_on_all_rows_do_not_prove_that_they_are_equal() -> None:
    labels = np.arange(100) % 2
    runs = [[labels] * 3, [labels] * 3]
    found = confirm([SplitPredictions("accuracy", runs, labels, np.arange(100) < 50)])
    assert found.verdict == "not distinguishable"
    assert found.interval[0] < 0.96  # of 50 rows without an error, up to 5.8 % may be wrong
    assert found.difference_interval[0] < 0 < found.difference_interval[1]


def test_two_splits_count_alike() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    searched = np.arange(600) < 300
    runs = [
        [np.where(rng.random(600) < p, labels, 1 - labels) for _ in range(3)] for p in (0.6, 0.9)
    ]
    one = SplitPredictions("accuracy", runs, labels, searched)
    found = confirm([one, one])
    assert found.verdict == "better"
    expected = [np.mean([(p == labels)[~searched].mean() for p in group]) for group in runs]
    assert (found.default, found.corrected) == pytest.approx(expected)
    worse = confirm([SplitPredictions("accuracy", runs[::-1], labels, searched)])
    assert worse.verdict == "worse"


def test_values_are_judged_as_classes_are() -> None:
    """A correlation, whose rows are all distinct; and the bounds of what it can be."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    searched = np.arange(200) < 100
    runs = [[truth + rng.normal(0, noise, 200) for _ in range(3)] for noise in (1.0, 0.3)]
    found = confirm([SplitPredictions("pearson", runs, truth, searched)])
    expected = [np.corrcoef(p[~searched], truth[~searched])[0, 1] for p in runs[1]]
    assert (found.winner, found.verdict) == (0, "better")
    assert found.corrected == pytest.approx(np.mean(expected))
    assert -1 <= found.default_interval[0] < found.default_interval[1] <= 1
