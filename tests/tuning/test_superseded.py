"""A sweep or a suite whose lease was taken over ends at once and writes nothing more."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.errors import SupersededError
from trainyard.fleet import Fleet
from trainyard.fleet.actor import RunProcess
from trainyard.fleet.driver.ray_tune import run_tuner
from trainyard.signals import StopSignals
from trainyard.storage import lease as leases
from trainyard.storage.folder import SuiteFolder
from trainyard.storage.job_folder import JobFolder
from trainyard.storage.lease import LEASE, Lease
from trainyard.storage.sweep_folder import SweepFolder, TrialSpec
from trainyard.tasks import TASKS
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.trials import Context

SPEC = TrialSpec(index=0, name="trial-0000", hyperparameters={})


def lose(folder: JobFolder) -> set[Path]:
    """Take the lease away, as if it had expired; returns the files that are left."""
    (folder.path / LEASE).unlink()
    return {path for path in folder.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("defect", [False, True])
def test_a_trial_of_a_lost_sweep_trains_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: bool
) -> None:
    """Also when it meets a defect of the program after the lease was lost."""
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.create()

    def part(_: RunProcess) -> None:
        if defect:
            lost.append(lose(sweep))
            raise RuntimeError("a defect")

    lost: list[set[Path]] = []
    monkeypatch.setattr(RunProcess, "_part", part)
    with sweep.lease():
        sweep.add(SPEC)
        data: Any = {("m", 1): SimpleNamespace(folders=("train", "validation"))}
        context = Context(
            sweep="sweep", config=SweepConfig(task="mrpc"), task=TASKS["mrpc"], data=data,
            per_worker={"CPU": 1.0}, fence=sweep.fence,
            folders={"search": sweep.trials, "confirmation": sweep.confirmation},
        )  # fmt: skip
        process = RunProcess(context.shared)
        process.start(context.run(SPEC))
        if not defect:
            lost.append(lose(sweep))
        with pytest.raises(SupersededError, match="sweep 'sweep' was taken over"):
            process.next_report()
        assert {path for path in sweep.path.rglob("*") if path.is_file()} == lost[0]


@pytest.mark.parametrize("kind", [SweepFolder, SuiteFolder])
def test_a_lost_job_waits_for_none_of_its_runs(
    kind: type[JobFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kind(tmp_path / "job")
    folder.create()
    forever = threading.Event()

    def run_tuner(*_: Any) -> None:
        lose(folder)
        forever.wait(60)

    monkeypatch.setattr("trainyard.fleet.driver.ray_tune.run_tuner", run_tuner)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.1)
    with (
        folder.lease() as lease,
        pytest.raises(SupersededError, match=f"{kind.KIND} 'job' was taken over"),
    ):
        fleet_of(folder, lease).run(lambda: None, lambda: False, lambda *_: None)
    forever.set()


def fleet_of(folder: JobFolder, lease: Lease) -> Fleet:
    return Fleet(
        folder=folder, lease=lease, concurrent=1, restarts=0,
        signals=StopSignals(folder.stop_request),
    )  # fmt: skip


def test_a_superseded_driver_leaves_its_successors_files_and_requests(tmp_path: Path) -> None:
    """Scratch files of Tune, and requests to stop the job or one of its runs."""
    first, second = SweepFolder(tmp_path), SweepFolder(tmp_path)
    with first.lease() as lost:
        (tmp_path / LEASE).unlink()
        with second.lease() as lease, StopSignals(second.stop_request):
            scratch = tmp_path / ".tune" / lease.id
            scratch.mkdir(parents=True)
            with pytest.raises(SupersededError):
                run_tuner(fleet_of(first, lost), lambda: None, lambda *_: None, None)
            assert scratch.is_dir()
            with StopSignals(first.stop_request) as signals, signals.training():
                signals._handle(signal.SIGTERM, None)
                assert first.stop_is_requested()
                assert not second.stop_is_requested()
                run = second.run("search", "trial-0000")
                with run.lease():
                    first.run("search", "trial-0000").stop_request.touch()
                    assert not run.wants_stop()
                    second.run("search", "trial-0000").stop_request.touch()
                    assert run.wants_stop()
                second.stop_request.touch()
            assert second.stop_is_requested()
