"""Outcomes of runs whose process was lost or stopped, from folders alone: no cluster."""

from pathlib import Path

import pytest

from trainyard.config import TrainConfig
from trainyard.fleet import Ended, Fleet, RunSpec
from trainyard.storage import SuiteFolder
from trainyard.terminal import StopSignals


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    folder = SuiteFolder(tmp_path)
    return Fleet(folder=folder, concurrent=1, restarts=2, signals=StopSignals(folder.stop_request))


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


def test_a_run_that_ended_before_its_process_was_lost_keeps_its_outcome(
    fleet: Fleet, run: RunSpec
) -> None:
    run.folder.create()
    run.folder.update(status="finished", result={"score": 0.5})
    assert fleet.lose("a", run) == Ended("finished")
    assert fleet.complete("a", run, None) == Ended("finished")  # the scheduler's decision came late
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
    assert fleet.complete("a", run, None).status == "pruned"
    fleet.start("a", run)
    assert fleet.complete("a", run, Ended("stopped", "saved")) == Ended("stopped", "saved")
    assert fleet.running == {}
