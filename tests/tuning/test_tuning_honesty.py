"""What a sweep claims, against a world whose truth is known: 1,000 synthetic sweeps a case."""

from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from trainyard.tuning import honesty
from trainyard.tuning.honesty import Confirmation, Floats, Judged, confirm

SWEEPS, TRIALS, ROWS = 1000, 12, 300


class World:
    """Rows of different difficulty; a run is right where skill, seed and chance beat it."""

    def __init__(self, seed_spread: float, skill_spread: float, taste: float) -> None:
        self.seed_spread, self.skill_spread, self.taste = seed_spread, skill_spread, taste

    def truth(self, skill: float) -> float:
        """Accuracy over all rows and seeds there could be: a sum of normals is normal."""
        spread = np.sqrt(1.5**2 + self.seed_spread**2 + self.taste**2 + 0.5)
        return float(ndtr((1.8 + skill) / spread))

    def sweep(self, rng: np.random.Generator, top: int, seeds: int) -> tuple[Confirmation, Floats]:
        """Search, take the best, run them again; the verdict, and the naive score and the truths."""
        ease = rng.normal(1.8, 1.5, ROWS)
        labels = (rng.random(ROWS) < 0.5).astype(np.int64)
        skills = np.r_[0.0, rng.normal(0, self.skill_spread, TRIALS)]
        tastes = rng.normal(0, self.taste, (TRIALS + 1, ROWS))  # which rows a recipe gets right

        def run(recipe: int) -> Any:
            luck = rng.normal(0, self.seed_spread) + rng.normal(0, np.sqrt(0.5), ROWS)
            return np.where(ease + skills[recipe] + tastes[recipe] + luck > 0, labels, 1 - labels)

        searched = [(run(recipe) == labels).mean() for recipe in range(1, TRIALS + 1)]
        chosen = np.argsort(searched)[::-1][:top] + 1
        predictions = [[run(recipe) for _ in range(seeds)] for recipe in (0, *chosen)]
        scores = np.array([[(p == labels).mean() for p in row] for row in predictions])
        found = confirm(scores, [Judged("accuracy", predictions, labels)])
        naive = scores[1 + found.winner].mean()
        skill = skills[chosen[found.winner]]
        return found, np.array([naive, self.truth(skill), self.truth(0.0), max(searched)])


CASES: dict[str, tuple[dict[str, float], int, int]] = {
    "identical, unsteady": ({"seed_spread": 0.3, "skill_spread": 0, "taste": 0}, 2, 3),
    "identical, two seeds, four candidates": (
        {"seed_spread": 0.2, "skill_spread": 0, "taste": 0}, 4, 2,
    ),
    "equal but for taste": ({"seed_spread": 0.1, "skill_spread": 0, "taste": 0.5}, 2, 3),
    "different": ({"seed_spread": 0.15, "skill_spread": 0.4, "taste": 0.2}, 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_claim_is_true(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(honesty, "RESAMPLES", 60)
    spreads, top, seeds = CASES[case]
    world, rng = World(**spreads), np.random.default_rng(1)
    found, facts = zip(*(world.sweep(rng, top, seeds) for _ in range(SWEEPS)), strict=True)
    naive, truth, default, searched = np.array(facts).T
    corrected = np.array([c.corrected for c in found])
    verdicts = np.array([c.verdict for c in found])

    def coverage(intervals: list[tuple[float, float]], truths: Floats) -> float:
        low, high = np.array(intervals).T
        return float(((low <= truths) & (truths <= high)).mean())

    assert coverage([c.interval for c in found], truth) >= 0.9
    assert coverage([c.default_interval for c in found], default) >= 0.9
    assert coverage([c.difference_interval for c in found], truth - default) >= 0.9
    assert abs((corrected - truth).mean()) < 0.3 * (searched - truth).mean()
    if spreads["skill_spread"]:
        assert (verdicts == "better").mean() > 0.3  # it can see what is there
        assert ((verdicts == "better") & (truth <= default)).mean() <= 0.01
    else:
        assert (verdicts != "not distinguishable").mean() <= 0.05
        assert abs((corrected - truth).mean()) < abs((naive - truth).mean())


def test_the_same_runs_give_the_same_verdict() -> None:
    world = World(0.1, 0.3, 0.1)
    one, two = (world.sweep(np.random.default_rng(3), 2, 3)[0] for _ in range(2))
    assert one == two


def test_two_splits_count_alike() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    runs = [
        [np.where(rng.random(300) < p, labels, 1 - labels) for _ in range(3)] for p in (0.6, 0.9)
    ]
    scores = np.array([[(p == labels).mean() for p in row] for row in runs])
    one = Judged("accuracy", runs, labels)
    found = confirm(scores, [one, one])
    assert found.verdict == "better"
    assert found.difference == pytest.approx(scores[1].mean() - scores[0].mean(), abs=0.01)
    worse = confirm(scores[::-1], [Judged("accuracy", runs[::-1], labels)])
    assert worse.verdict == "worse"


def test_values_are_judged_as_classes_are() -> None:
    """A correlation, whose rows are all distinct; and the bounds of what it can be."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    runs = [[truth + rng.normal(0, noise, 200) for _ in range(2)] for noise in (1.0, 0.3)]
    scores = np.array([[np.corrcoef(p, truth)[0, 1] for p in row] for row in runs])
    found = confirm(scores, [Judged("pearson", runs, truth)])
    assert found.winner == 0
    assert scores[1].mean() == pytest.approx(found.corrected, abs=0.01)
    assert -1 <= found.default_interval[0] < found.default_interval[1] <= 1
