"""fsdp and ZeRO in a bucket: each worker uploads its part; on other nodes a run has the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.bucket_here import endpoint, url
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.runs_locally import weights_hash
from support.strategy_runs import KINDS, Runs, two_workers

from trainyard.config import TrainConfig
from trainyard.storage.folder import open_run
from trainyard.storage.store import Bucket

__all__ = ["endpoint", "url"]

LAST_STEP = 8


@pytest.mark.parametrize(
    "kind", ["fsdp", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("zero2", "zero3"))]
)
def test_cut_off_and_resumed_from_an_empty_cache_it_ends_with_the_same_bits(
    kind: str,
    small_run: TrainConfig,
    tmp_path: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lift_guards(monkeypatch)
    base = two_workers(small_run, tmp_path / "runs")
    whole = replace(
        base, run_name="whole", max_steps=LAST_STEP, save_steps=2, eval_steps=4, **KINDS[kind]
    )
    cut = replace(whole, run_name="cut", storage_path=url)
    first = [Attempt(whole), Attempt(cut, cut_at=5, own_caches=True)]
    run_ranks(2, first, tmp_path / "first")
    stored = [name for name in Bucket(url).names("cut/checkpoints") if "/step-00000004-" in name]
    parts = {name.rpartition("/")[2] for name in stored if "-of-" in name}
    assert parts == {
        f"{kept}-0000{worker}-of-00002.safetensors"
        for kept in ("model", "optimizer")
        for worker in (1, 2)
    }
    # Nodes that share nothing: each uploads from, and downloads to, its own cache.
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "other machines"))
    run_ranks(2, [Attempt(cut, own_caches=True)], tmp_path / "second")
    expected = Runs(base.storage_path, LAST_STEP)("whole")
    folder = open_run(url, "cut")
    folder.fetch()
    folder.store().bring(LAST_STEP)
    assert weights_hash(folder, LAST_STEP) == weights_hash(expected, LAST_STEP)
    assert folder.metrics() == expected.metrics()
