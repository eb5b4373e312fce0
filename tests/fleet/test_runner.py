"""Outcomes of runs whose process was lost or stopped, from folders alone: no cluster."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from storage.test_checkpoints import writer

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.fleet import Ended, Fleet, RunSpec
from trainyard.fleet.driver.ray_tune import _TuneCallback
from trainyard.fleet.spec import VERDICT
from trainyard.signals import StopSignals
from trainyard.storage import SuiteFolder
from trainyard.storage import lease as leases


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    folder = SuiteFolder(tmp_path)
    with folder.lease() as lease:
        yield Fleet(
            folder=folder, lease=lease, concurrent=1, restarts=2,
            signals=StopSignals(folder.stop_request),
        )  # fmt: skip


@pytest.fixture
def run(fleet: Fleet, tmp_path: Path) -> RunSpec:
    spec = RunSpec(config=TrainConfig(storage_path=str(tmp_path), run_name="mrpc-seed-1"))
    fleet.start("a", spec)
    return spec


def test_a_run_whose_process_was_lost_too_often_has_failed(fleet: Fleet, run: RunSpec) -> None:
    ended = fleet.lose("a", run)
    reason = "its process was lost more than 2 time(s) (--max-failures)"
    assert (ended, fleet.running) == (Ended("failed", reason), {})
    assert (run.folder.read()["status"], run.folder.read()["reason"]) == ("failed", reason)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("Memory on it: killed due to the node running low on memory", "was ended by Ray because"),
        ("Worker exit type: SYSTEM_ERROR", "was killed or crashed; often the memory"),
        ("its node has died", None),
        (None, None),
    ],
)
def test_a_run_whose_process_lacked_memory_says_so(
    error: str | None,
    words: str | None,
    fleet: Fleet,
    run: RunSpec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainyard.fleet.driver.ray_tune.release_orphans", lambda: None)
    outcomes: list[Ended] = []
    callback = _TuneCallback(fleet, lambda _, ended: outcomes.append(ended))
    trial: Any = SimpleNamespace(trial_id="a", config={"spec": run}, error_file=None)
    if error is not None:
        trial.error_file = str(tmp_path / "error.txt")
        before = "Failure # 1 (occurred at 2026)\nWorker exit type: SYSTEM_ERROR\n"
        Path(trial.error_file).write_text(f"{before}Failure # 2 (occurred at 2026)\n{error}\n")
    callback.on_trial_recover(trial=trial)
    shown = capsys.readouterr()
    assert f"mrpc-seed-1: its process {words or 'was lost; starting'}" in shown.out + shown.err
    callback.on_trial_error(trial=trial)
    (ended,) = outcomes
    reason = "its process was lost more than 2 time(s) (--max-failures)"
    if words:
        assert str(ended.reason).startswith(f"{reason}; the last one {words}")
        assert "; run fewer workers on a node" in str(ended.reason)
    else:
        assert ended == Ended("failed", reason)


def test_a_run_that_ended_before_its_process_was_lost_keeps_its_outcome(
    fleet: Fleet, run: RunSpec
) -> None:
    run.folder.create()
    run.folder.update(status="finished", result={"score": 0.5})
    assert fleet.lose("a", run) == Ended("finished")
    assert fleet.complete("a", run, None) == Ended("finished")  # the scheduler's decision came late
    (run.folder.path / VERDICT).touch()
    assert fleet.settle(run, None) == Ended("finished")
    assert not (run.folder.path / VERDICT).exists()
    assert run.folder.read() == {"status": "finished", "result": {"score": 0.5}}


def test_a_damaged_record_of_a_lost_run_stops_no_other(fleet: Fleet, run: RunSpec) -> None:
    run.folder.create()
    (run.folder.path / "run.json").write_text("{")
    ended = fleet.lose("a", run)
    assert ended.status == "failed"
    assert "run.json is damaged" in str(ended.reason)
    assert (run.folder.path / "run.json").read_text() == "{"


def test_a_run_without_an_outcome_was_stopped_by_the_scheduler(fleet: Fleet, run: RunSpec) -> None:
    run.folder.create()
    run.folder.update(status="running")
    store = run.folder.store()
    store.claim()
    store.commit(6, writer("its last"))
    assert fleet.complete("a", run, None).status == "pruned"
    assert (run.folder.path / VERDICT).exists()
    assert run.folder.read()["status"] == "running"  # its process records it, if it still lives
    assert fleet.settle(run, None).status == "pruned"
    assert run.folder.read()["status"] == "pruned"
    assert store.steps() == []
    assert not (run.folder.path / VERDICT).exists()
    fleet.start("a", run)
    assert fleet.complete("a", run, Ended("stopped", "saved")) == Ended("stopped", "saved")
    assert fleet.running == {}


def test_a_run_that_another_process_still_holds_is_closed_when_that_has_ended(
    fleet: Fleet, run: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that lost its network; until then its record is that process's."""
    with run.folder.lease():
        run.folder.update(status="running")
        assert fleet.lose("a", run).status == "failed"
        assert run.folder.read() == {"status": "running"}
    monkeypatch.setattr("trainyard.fleet.driver.ray_tune.run_tuner", lambda *_: None)
    monkeypatch.setattr(Fleet, "start", lambda *_: None)
    fleet.run(lambda: None, lambda: False, lambda *_: None)
    assert run.folder.read()["status"] == "running"  # of an earlier phase of the sweep

    def loses(*_: Any) -> None:
        with run.folder.lease():
            fleet.lose("a", run)

    monkeypatch.setattr("trainyard.fleet.driver.ray_tune.run_tuner", loses)
    fleet.run(lambda: None, lambda: False, lambda *_: None)
    assert run.folder.read()["status"] == "failed"


@pytest.mark.parametrize("passes", [True, False])
def test_a_storage_that_fails_ends_a_fleet_only_when_its_lease_expires(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    """Each read of the lease fails, for less than the lease's time or for longer."""
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 60.0 if passes else 0.5)
    done = threading.Event()

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def run_tuner(*_: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", broken)
            done.wait(1.5)

    monkeypatch.setattr("trainyard.fleet.driver.ray_tune.run_tuner", run_tuner)
    if passes:
        fleet.run(lambda: None, lambda: False, lambda *_: None)
    else:
        with pytest.raises(UserError, match="Input/output error"):
            fleet.run(lambda: None, lambda: False, lambda *_: None)
    done.set()
    time.sleep(0.1)


def test_tune_can_store_what_watches_a_fleet(fleet: Fleet) -> None:
    """It stores its callbacks when it starts; leases and bars of progress cannot be stored."""
    with pytest.raises(TypeError, match="cannot pickle"):
        cloudpickle.dumps(fleet)
    assert cloudpickle.dumps(_TuneCallback(fleet, lambda *_: None))
