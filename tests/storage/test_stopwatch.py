"""Where the time of a run went: the ledger leaves at most a fiftieth of the wall clock out."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.runs_locally import run_locally

from trainyard.config import TrainConfig
from trainyard.storage.folder import RunFolder
from trainyard.storage.stopwatch import ACCOUNTS, Stopwatch, time_ledger
from trainyard.training.worker import loop


def test_every_second_is_booked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0, 13.5, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    watch.lap("data")
    watch.lap("compute")
    assert watch.lap("data") == 0.5
    assert watch.seconds == {"data": 1.5, "compute": 2.0}
    assert watch.total() == 10.0
    watch.move("compute", "sync", 0.5)
    watch.move("data", "sync", 99.0)
    assert watch.take() == {"data": 0.0, "compute": 1.5, "sync": 2.0}
    assert watch.take() == {}


def test_driver_and_workers_are_put_together() -> None:
    driver = {"start_up": 2.0, "tokenization": 1.0, "training": 20.0, "export": 0.5}
    worker = {"start_up": 1.0, "data": 1.0, "compute": 12.0, "checkpoint": 1.0}
    found = time_ledger({"seconds": driver}, {"seconds": worker})
    assert found == {
        "start_up": 3.0, "workers": 5.0, "tokenization": 1.0, "data": 1.0, "compute": 12.0,
        "checkpoint": 1.0, "export": 0.5,
    }  # fmt: skip
    assert sum(found.values()) == sum(driver.values())
    assert list(found) == [account for account in ACCOUNTS if account in found]
    assert time_ledger({"startup_seconds": 0.3}, {"seconds": worker})["workers"] == 0.3
    assert time_ledger({}, {}) == {}


@contextmanager
def timed_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The wall clock of each call of the loop, taken from outside it."""
    spent: list[float] = []
    train = loop.train

    def call(*args: Any) -> Any:
        started = time.perf_counter()
        try:
            return train(*args)
        finally:
            spent.append(time.perf_counter() - started)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", call)
        yield spent


def test_the_loop_is_covered_over_all_attempts(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), run_name="timed")
    run_locally(dataclasses.replace(config, run_name="first", max_steps=1))  # imports, caches
    folder = RunFolder(tmp_path / "timed")
    with timed_loop(monkeypatch) as spent:
        folder.create()
        folder.stop_request.touch()
        outcome, _ = run_locally(config)
        assert (outcome.status, outcome.state.step) == ("stopped", 1)
        folder.stop_request.unlink()
        assert run_locally(config)[0].status == "finished"
    found = time_ledger(folder.read(), folder.progress())
    assert len(spent) == 2
    assert 0.98 * sum(spent) <= sum(found.values()) <= sum(spent) + 0.01
    assert {"start_up", "data", "compute", "evaluation", "checkpoint"} <= set(found)
