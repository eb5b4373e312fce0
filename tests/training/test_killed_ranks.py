"""A process of a sharded or fp16 run is killed by SIGKILL; run again, it ends with the same bits."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle
from support import lifted
from support.ranks import Attempt, run_ranks
from support.runs_locally import weights_hash
from support.strategy_runs import KINDS as STRATEGIES

from trainyard.config import TrainConfig
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training import fit

LAST_STEP = 6
FP16 = {"enabled": True, "initial_scale_power": 22, "loss_scale_window": 2}
KINDS: dict[str, dict[str, Any]] = {
    "fsdp": STRATEGIES["fsdp"],
    "zero2-offload": STRATEGIES["zero2-offload"],
    "zero2-fp16": {**STRATEGIES["zero2"], "mixed_precision": "fp16",
                   "deepspeed_config": json.dumps({"fp16": FP16})},
}  # fmt: skip
KILLS = {"fsdp": (1, "step:4"), "zero2-offload": (0, "save:2"), "zero2-fp16": (1, "step:2")}
"""Rank and place: in the middle of a step, or of a checkpoint."""


@pytest.fixture
def base(small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    lifted.lift_guards(monkeypatch)
    return replace(
        small_run, storage_path=str(tmp_path / "runs"), max_steps=LAST_STEP, save_steps=2, eval_steps=3,
        num_workers=2, ledger=False,
    )  # fmt: skip


def check_equal(killed: RunFolder, whole: RunFolder) -> None:
    assert weights_hash(killed, LAST_STEP) == weights_hash(whole, LAST_STEP)
    assert killed.metrics() == whole.metrics()


@pytest.mark.parametrize(
    "kind", [pytest.param("fsdp", marks=pytest.mark.long), "zero2-offload", "zero2-fp16"]
)
def test_a_rank_is_killed(kind: str, base: TrainConfig, tmp_path: Path) -> None:
    whole, killed = (replace(base, run_name=name, **KINDS[kind]) for name in ("whole", "killed"))
    run_ranks(2, [Attempt(killed, killed=KILLS[kind])], tmp_path / "killed")
    folder = open_run(base.storage_path, "killed")
    saved = folder.store().steps()
    assert saved
    assert max(saved) < LAST_STEP
    run_ranks(2, [Attempt(killed), Attempt(whole)], tmp_path / "resumed")
    check_equal(folder, open_run(base.storage_path, "whole"))
    if kind == "zero2-fp16":
        lines = [line for line in folder.metrics() if "loss" in line]
        assert lines[0]["loss_scale"] == 2.0**21  # half of the file's
        assert 0 < lines[-1]["skipped_steps"] < LAST_STEP


@pytest.mark.long
def test_a_worker_of_ray_is_killed(
    cluster: Any,  # noqa: ARG001
    base: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ZeRO-2 with offload through Ray Train; the guards are lifted inside its workers."""
    cloudpickle.register_pickle_by_value(lifted)
    lifted.lift_workers(monkeypatch)
    base = replace(base, resources_per_worker={"CPU": 1, "place": 1}, **KINDS["zero2-offload"])
    whole, config = (replace(base, run_name=name, max_steps=12) for name in ("whole", "killed"))
    fit(whole)
    folder = open_run(base.storage_path, "killed")
    victims: list[int] = []

    def kill() -> None:
        while folder.progress().get("step", 0) < 5:
            time.sleep(0.01)
        workers = [
            one for one in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(one.cmdline())
        ]  # fmt: skip
        newest = max(workers, key=psutil.Process.create_time)
        newest.kill()
        victims.append(newest.pid)

    threading.Thread(target=kill, daemon=True).start()
    fit(config)
    assert victims
    assert weights_hash(folder, 12) == weights_hash(open_run(base.storage_path, "whole"), 12)
    assert folder.metrics() == open_run(base.storage_path, "whole").metrics()
