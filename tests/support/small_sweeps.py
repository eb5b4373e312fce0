"""Small sweeps on the session's Ray, for tests that need a real sweep."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.storage.sweep_folder import SweepFolder
from trainyard.tuning.config import SweepConfig


def small_sweep(small_run: TrainConfig, storage: Path) -> SweepConfig:
    """Build a sweep of three random trials, two at a time; two seeds confirm the best."""
    own = {field.name: getattr(small_run, field.name) for field in dataclasses.fields(TrainConfig)}
    changed: dict[str, Any] = {
        "ledger": False, "num_train_epochs": 2, "logging_steps": 3, "run_name": "undisturbed",
        "storage_path": str(storage), "resources_per_worker": {"CPU": 1},
    }  # fmt: skip
    return SweepConfig(
        **{**own, **changed}, set=(("learning_rate=loguniform:1e-4:1e-2",),), scheduler="fifo",
        num_trials=3, max_concurrent_trials=2, confirm_top=1, confirm_seeds=2,
    )  # fmt: skip


def folder_of(config: SweepConfig) -> SweepFolder:
    return SweepFolder(Path(config.storage_path) / config.resolved_run_name)


def wait_until_free(ray: Any, cpus: float) -> None:
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < cpus:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)
