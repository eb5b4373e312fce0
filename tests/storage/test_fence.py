"""A driver that lost its lease writes nothing more, at whatever point it was suspended."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from storage.test_checkpoints import writer
from support.bucket_here import endpoint, url

from trainyard.errors import SupersededError
from trainyard.storage.folder import RunFolder, SuiteFolder, open_run
from trainyard.storage.job_folder import LOG
from trainyard.storage.lease import LEASE
from trainyard.storage.sweep_folder import SweepFolder, TrialSpec
from trainyard.terminal import say
from trainyard.training.driver.fit import _logged_records

__all__ = ["endpoint", "url"]  # fixtures

WRITES: dict[str, Callable[[RunFolder], object]] = {
    "record": lambda run: run.update(status="failed"),
    "journal line": lambda run: run.append_metrics({"step": 1}),
    "rewind": lambda run: run.rewind_metrics(0),
    "progress": lambda run: run.set_progress(step=1),
    "predictions": lambda run: run.write_predictions({"validation": np.zeros((2, 2))}),
    "claim": lambda run: run.store().claim(),
    "deletion": lambda run: run.store().keep(()),
    "fresh": RunFolder.clear,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("level", ["run", "sweep"])
def test_a_driver_that_lost_its_lease_writes_nothing(
    tmp_path: Path, write: Callable[[RunFolder], object], level: str
) -> None:
    """Its own, or that of the sweep or suite which the run belongs to."""
    sweep = SweepFolder(tmp_path)
    with sweep.lease():
        run = sweep.run("search", "trial-0000")
        run.create()
        with run.lease():
            store = run.store()
            store.claim()
            store.commit(10, writer("mine"))
            run.append_metrics({"step": 10})
            (({"run": run, "sweep": sweep}[level]).path / LEASE).unlink()  # as if it had expired
            before = snapshot(run.path)
            with pytest.raises(SupersededError, match=f"{level} '.*' was taken over"):
                write(run)
            with pytest.raises(SupersededError):
                store.commit(20, writer("mine"))
            assert snapshot(run.path) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LEASE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_sweeps_and_suites_that_lost_their_lease_write_nothing(tmp_path: Path) -> None:
    sweep, suite = SweepFolder(tmp_path / "sweep"), SuiteFolder(tmp_path / "suite")
    spec = TrialSpec(index=0, name="trial-0000", hyperparameters={})
    for folder, write in (
        (sweep, lambda: sweep.add(spec)),
        (sweep, lambda: sweep.update(status="failed")),
        (suite, lambda: suite.write_table({"tasks": []}, "", "")),
    ):
        folder.create()
        with folder.lease():
            (folder.path / LEASE).unlink()
            with pytest.raises(SupersededError, match="was taken over by another driver"):
                write()
            assert not snapshot(folder.path)


@pytest.mark.parametrize("kept", ["disk", "bucket"])
def test_a_driver_that_lost_its_lease_logs_no_more(
    kept: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With a bucket, too: its successor on this node logs to the same file."""
    where = str(tmp_path) if kept == "disk" else request.getfixturevalue("url")
    sleeper, successor = open_run(where, "run"), open_run(where, "run")
    log = sleeper.path / LOG

    def sleep_and_go_on() -> None:
        with sleeper.lease() as lease, _logged_records(sleeper):
            say("step 10 of 20")
            lease._store.write(lease._name, b'{"released": true}')  # as if it had expired
            with successor.lease(), _logged_records(successor):
                say("step 20 of 20")
            say("step 11 of 20")
            sleeper.update(status="running")

    with pytest.raises(SupersededError):
        sleep_and_go_on()
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()] == [
        *(("started", "step 10 of 20") if kept == "disk" else ()),
        "started", "step 20 of 20", "ended",
    ]  # fmt: skip


@pytest.mark.parametrize("kept", ["disk", "bucket"])
def test_a_driver_suspended_before_it_wrote_its_record_overwrites_none(
    kept: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It checked its lease, then slept while a successor took it and wrote."""
    where = str(tmp_path) if kept == "disk" else request.getfixturevalue("url")
    sleeper, successor = open_run(where, "run"), open_run(where, "run")
    with sleeper.lease() as lease:
        sleeper.update(status="running", seconds=1)
        check = sleeper.check

        def sleeps() -> None:
            monkeypatch.setattr(sleeper, "check", check)
            check()
            lease._store.write(lease._name, b'{"released": true}')  # as if it had expired
            with successor.lease():
                successor.fetch()
                successor.update(status="finished")

        monkeypatch.setattr(sleeper, "check", sleeps)
        with pytest.raises(SupersededError, match="run 'run' was taken over"):
            sleeper.update(status="failed")
    successor.fetch()
    assert successor.read() == {"status": "finished", "seconds": 1}
