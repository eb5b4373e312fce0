"""A worker that resumes reads its share of a checkpoint, not all of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.bucket_here import endpoint, url
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.strategy_runs import KINDS, two_workers
from support.tiny import write_tiny_model

from trainyard.config import TrainConfig

__all__ = ["endpoint", "url"]

pytestmark = pytest.mark.long


@pytest.mark.parametrize("kind", ["fsdp", "zero2", "zero3"])
def test_no_worker_holds_the_whole_state(
    kind: str, small_run: TrainConfig, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder and in a bucket; each worker wrote a part of it."""
    lift_guards(monkeypatch)
    model = write_tiny_model(
        tmp_path / "model", hidden_size=384, intermediate_size=1536, num_hidden_layers=8
    )
    base = replace(
        two_workers(small_run, tmp_path / "runs"), model_name_or_path=str(model), max_steps=2,
        save_steps=1, eval_steps=2, **KINDS[kind],
    )  # fmt: skip
    configs = [replace(base, run_name="folder"), replace(base, run_name="bucket", storage_path=url)]
    attempts = [
        attempt
        for config in configs
        for attempt in (Attempt(config, cut_at=1), Attempt(config, measures_load=True))
    ]
    run_ranks(2, attempts, tmp_path / "ranks")
    whole = 3 * (model / "model.safetensors").stat().st_size  # weights, and two moments of each
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("load-[01].json"))]
    assert len(found) == 4
    for load in found:
        assert load["bytes"] < 0.9 * whole
        assert not load["mapped"]  # else the disk keeps the space of deleted checkpoints
