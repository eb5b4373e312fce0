"""Simulate sweeps with known true scores, to count wrong verdicts.

A run is right on a row if a sum is above 0: the row's ease, the recipe's skill, the recipe's taste
for the row, the seed's effect, and noise. `taste` makes equally good recipes right on different
rows: noise that fresh seeds do not remove. The verdict is that of `confirm`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binomtest

from trainyard.tuning.honesty import (
    CONFIRMATION_SHARE,
    FEWEST_SEEDS,
    Confirmation,
    SplitPredictions,
    confirm,
)

Floats = NDArray[np.float32]
EASE, EASE_SPREAD, CHANCE = 1.8, 1.5, 0.5**0.5
"""Mean and standard deviation of a row's ease; standard deviation of a run's noise."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    trials: int
    taste: float
    top: int
    seeds: int
    rows: int
    seed_spread: float = 0.0
    skill_spread: float = 0.0
    extended_to: int | None = None
    """Number of trials after an extension, which follows a first verdict "not distinguishable"."""


@dataclass(frozen=True)
class Claim:
    """Result of a confirmation, and the true scores."""

    found: Confirmation
    winner: float
    default: float
    picked: float
    """Best score that the search saw: the naive figure."""


class World:
    """One draw of rows and recipes; recipe 0 is the default."""

    def __init__(self, cell: Cell, rng: np.random.Generator) -> None:
        self.cell, self._rng = cell, rng
        trials = max(cell.trials, cell.extended_to or 0)
        self.ease = EASE + EASE_SPREAD * self._normal(cell.rows)
        self.labels = (rng.random(cell.rows) < 0.5).astype(np.int64)
        self.skills = np.r_[0.0, rng.normal(0, cell.skill_spread, trials)].astype(np.float32)
        self.tastes = np.float32(cell.taste) * self._normal(1 + trials, cell.rows)
        self.searched = np.arange(cell.rows) >= round(cell.rows * CONFIRMATION_SHARE)
        right, _ = self.runs(range(1, 1 + trials), 1)
        self.searched_scores = right[:, 0, self.searched].mean(axis=1)
        self._confirmed: dict[int, tuple[NDArray[np.bool_], Floats]] = {}

    def _normal(self, *shape: int) -> Floats:
        return self._rng.standard_normal(shape, dtype=np.float32)

    def runs(self, recipes: Sequence[int], seeds: int) -> tuple[NDArray[np.bool_], Floats]:
        """Return masks of the right rows, [recipes, seeds, rows], and the effect of each seed."""
        luck = np.float32(self.cell.seed_spread) * self._normal(len(recipes), seeds)
        chance = np.float32(CHANCE) * self._normal(len(recipes), seeds, self.cell.rows)
        chosen = np.asarray(recipes)
        shared = self.ease + self.tastes[chosen] + self.skills[chosen, None]
        return shared[:, None] + luck[..., None] + chance > 0, luck

    def truth(self, recipe: int, luck: Floats) -> float:
        """Return the accuracy over all rows and seeds; with too few seeds, that of these seeds."""
        cell = self.cell
        few = cell.seeds < FEWEST_SEEDS
        noise = EASE_SPREAD**2 + CHANCE**2 + cell.taste**2 + (0 if few else cell.seed_spread**2)
        skill = EASE + self.skills[recipe] + (luck if few else 0.0)
        return float(np.mean(ndtr(skill / np.sqrt(noise))))

    def claim(self, trials: int, *, look: int = 1) -> Claim:
        """Confirm the best of the first `trials` trials with fresh seeds."""
        scores = self.searched_scores[:trials]
        chosen = [0, *(1 + np.argsort(-scores, kind="stable")[: self.cell.top])]
        for recipe in chosen:
            if recipe not in self._confirmed:
                right, luck = self.runs([recipe], self.cell.seeds)
                self._confirmed[recipe] = right[0], luck[0]
        predictions = [
            [np.where(run, self.labels, 1 - self.labels) for run in self._confirmed[recipe][0]]
            for recipe in chosen
        ]
        found = confirm(
            [SplitPredictions("accuracy", predictions, self.labels, self.searched)], look=look
        )
        winner = chosen[1 + found.winner]
        return Claim(
            found,
            self.truth(winner, self._confirmed[winner][1]),
            self.truth(0, self._confirmed[0][1]),
            float(scores.max()),
        )

    def claims(self) -> list[Claim]:
        """Return the claim; if it is not distinguishable, also that of the extended sweep."""
        first = self.claim(self.cell.trials)
        if self.cell.extended_to is None or first.found.verdict != "not distinguishable":
            return [first]
        return [first, self.claim(self.cell.extended_to, look=2)]


def is_wrong(claim: Claim) -> bool:
    """Return whether a verdict contradicts the truth; equal recipes are not better or worse."""
    return (claim.found.verdict == "better" and claim.winner <= claim.default) or (
        claim.found.verdict == "worse" and claim.winner >= claim.default
    )


def simulate(cell: Cell, worlds: int, seed: int = 0) -> dict[str, Any]:
    """Return rates over simulated worlds, each with its 95 % Clopper-Pearson interval."""
    rng = np.random.default_rng(seed)
    claims = [World(cell, rng).claims() for _ in range(worlds)]
    last = [each[-1] for each in claims]

    def rate(events: Iterable[bool]) -> list[float]:
        hits = sum(events)
        low, high = binomtest(hits, worlds).proportion_ci()
        return [round(float(value), 4) for value in (hits / worlds, low, high)]

    def held(interval: tuple[float, float], truth: float) -> bool:
        return interval[0] <= truth <= interval[1]

    return {
        **{name: value for name, value in asdict(cell).items() if value is not None},
        "worlds": worlds,
        "wrong": rate(any(is_wrong(claim) for claim in each) for each in claims),
        "better": rate(claim.found.verdict == "better" for claim in last),
        "winner": rate(held(c.found.interval, c.winner) for c in last),
        "default": rate(held(c.found.default_interval, c.default) for c in last),
        "difference": rate(held(c.found.difference_interval, c.winner - c.default) for c in last),
        "bias": round(float(np.mean([c.found.corrected - c.winner for c in last])), 5),
        "naive_bias": round(float(np.mean([c.picked - c.winner for c in last])), 5),
    }


def is_honest(found: dict[str, Any]) -> bool:
    """Return whether the intervals allow errors of at most 5 %, and coverage of at least 93 %."""
    covered = all(found[name][2] >= 0.93 for name in ("winner", "default", "difference"))
    return found["wrong"][1] <= 0.05 and covered
