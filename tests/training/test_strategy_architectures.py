"""Architectures by strategy; T5 ties its encoder's and decoder's embeddings."""

from pathlib import Path

import pytest
from support.strategy_matrix import ARCHITECTURES, STRATEGIES, try_strategies


@pytest.mark.long
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_strategy_trains_resumes_and_exports(kind: str, tmp_path: Path) -> None:
    found = try_strategies(kind, tmp_path)
    assert found.keys() == STRATEGIES.keys()
    for name, seen in found.items():
        assert "error" not in seen, (name, seen)
        assert seen["resumed"], name
        assert seen["loss_difference"] <= 1e-6, name
        assert seen["logit_difference"] <= 1e-6, name
