"""Runs in a bucket, on a real S3 server: two nodes, and going on on an empty machine."""

import dataclasses
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from storage.test_checkpoints import writer
from support.bucket_here import endpoint, url
from support.runs_locally import run_locally, weights_hash
from support.serve_requests import wait_until
from training.test_loop import LAST_STEP
from training.test_training import job, losses, wait_for_step

from trainyard import TrainConfig, UserError, fit
from trainyard.errors import SupersededError
from trainyard.storage import exchange
from trainyard.storage import folder as folders
from trainyard.storage.folder import RunFolder, open_run
from trainyard.storage.store import Bucket
from trainyard.terminal import say
from trainyard.training.driver.fit import _logged_records

__all__ = ["endpoint", "url"]  # fixtures


def test_what_driver_and_worker_on_two_nodes_see_of_each_other(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and requests go there, progress comes back; each has a disk of its own."""
    monkeypatch.setattr(folders, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(exchange, "TELL_SECONDS", 0.0)
    driver = open_run(url, "run")
    driver.create()
    driver.fetch()
    table = driver.path.parent / ".cache/key"
    assert not driver.find_table(table)
    table.mkdir(parents=True)
    (table / "ids.bin").write_bytes(b"tokens")
    driver.share_tables({"train": table})

    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "elsewhere"))
    worker, tables = pickle.loads(pickle.dumps(driver)).on_this_node({"train": table})
    assert worker.path != driver.path
    assert tables["train"] != table
    assert (tables["train"] / "ids.bin").read_bytes() == b"tokens"

    worker.begin_exchange()
    worker.set_progress(step=7)
    wait_until(lambda: Bucket(url).has("run/progress.json"), 10)
    driver.sync()
    assert driver.progress() == {"step": 7}
    assert not worker.wants_stop()
    driver.request(driver.restart_request, "room for 4 workers")
    wait_until(worker.wants_stop, 10)
    driver.request(driver.restart_request, None)
    wait_until(lambda: not worker.wants_stop(), 10)
    driver.stop_request.write_text("SIGTERM")  # by a signal's handler
    driver.sync()
    wait_until(worker.wants_stop, 10)
    driver.update(status="stopped")
    driver.fetch()  # the next driver
    wait_until(lambda: not worker.wants_stop(), 10)
    worker.end_exchange()
    assert driver.read() == {"status": "stopped"}
    driver.clear()
    assert Bucket(url).names("run") == []

    Bucket(url).write(".cache/key/ids.bin", b"tokenz")
    shutil.rmtree(tables["train"])
    with pytest.raises(UserError, match=r"/\.cache/key is gone or damaged; delete what is left"):
        worker.on_this_node({"train": table})
    shutil.rmtree(table)
    assert not driver.find_table(table)  # so the driver builds it again, and mends the bucket's
    table.mkdir()
    (table / "ids.bin").write_bytes(b"tokens")
    driver.share_tables({"train": table})
    worker.on_this_node({"train": table})


def test_a_driver_that_lost_its_lease_changes_nothing_in_the_bucket(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does its worker on another node, which got the lease's id with the folder."""
    driver = open_run(url, "run")
    driver.create()
    with driver.lease():
        driver.fetch()
        driver.update(status="running")
        monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "elsewhere"))
        worker, _ = pickle.loads(pickle.dumps(driver)).on_this_node({})
        store = worker.store()
        store.claim()
        store.commit(10, writer("mine"))
        bucket = Bucket(url)
        bucket.write("run/lease.json", b'{"id": "successor", "pid": 7, "host": "elsewhere"}')
        before = {name: bucket.read(name) for name in bucket.names("run")}
        for harm in (
            lambda: driver.update(status="failed"),
            lambda: worker.append_metrics({"step": 20}),
            lambda: worker.publish("metrics.jsonl"),
            lambda: store.commit(20, writer("mine")),
            lambda: store.keep(()),
            lambda: worker.store().claim(),
            driver.clear,
        ):
            with pytest.raises(SupersededError, match="run 'run' was taken over by process 7 on"):
                harm()
        assert {name: bucket.read(name) for name in bucket.names("run")} == before
    assert bucket.read("run/lease.json") == before["run/lease.json"]


def test_a_late_worker_does_not_empty_the_scratch_folder_of_a_successor(url: str) -> None:
    """It starts on the node of the driver that has taken over since."""
    driver, successor = open_run(url, "run"), open_run(url, "run")
    with driver.lease():
        driver.fetch()
        late = pickle.dumps(driver)
        Bucket(url).write("run/lease.json", b'{"released": true}')  # as if it had expired
        with successor.lease():
            successor.fetch()
            successor.append_metrics({"step": 10})
            with pytest.raises(SupersededError, match="run 'run' was taken over by process"):
                pickle.loads(late).on_this_node({})
            assert successor.metrics() == [{"step": 10}]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"step": "7"}', b"\xff"])
def test_damaged_progress_in_the_bucket_does_not_end_the_run(
    url: str, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(folders, "TELL_SECONDS", 0.0)
    driver = open_run(url, "run")
    driver.create()
    driver.fetch()
    driver.set_progress(step=3)
    Bucket(url).write("run/progress.json", content)
    driver.sync()
    assert driver.progress() == {"step": 3}


def test_the_next_attempt_continues_the_log_and_the_use_of_the_node(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine. A checkpoint uploads the rows of usage, and the end the log."""

    def attempt(number: int) -> None:
        driver.update(status="running")
        say(f"attempt {number}")
        store = driver.store()
        store.claim()
        driver.append_usage({"seconds": number})
        store.commit(10 * number, writer("rows"))
        raise UserError("cut off")

    for number in (1, 2):
        monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / str(number)))
        driver = open_run(url, "run")
        driver.create()
        with pytest.raises(UserError, match="cut off"), _logged_records(driver):
            attempt(number)
    bucket = Bucket(url)
    usage, log = bucket.read("run/usage.jsonl"), bucket.read("run/log.txt")
    assert usage is not None
    assert [json.loads(line)["seconds"] for line in usage.content.splitlines()] == [1, 2]
    assert log is not None
    lines = [line.split(" ", 2)[2] for line in log.content.decode().splitlines()]
    assert lines == [
        line
        for number in (1, 2)
        for line in ("started", f"attempt {number}", "ended by UserError: cut off")
    ]


def test_the_log_of_a_finished_run_is_whole_in_the_bucket_and_gone_from_the_node(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path))
    driver = open_run(url, "run")
    driver.create()
    with _logged_records(driver):
        driver.update(status="finished")
        say("note: one answer")
        assert driver.path.exists()
    assert not driver.path.exists()
    log = Bucket(url).read("run/log.txt")
    assert log is not None
    lines = [line.split(" ", 2)[2] for line in log.content.decode().splitlines()]
    assert lines == ["started", "note: one answer", "ended"]


def test_a_disk_that_fails_at_the_end_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: RunFolder) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    driver = RunFolder(tmp_path / "run")
    driver.create()
    monkeypatch.setattr(RunFolder, "read", broken)
    with pytest.raises(UserError, match="cut off"), _logged_records(driver):
        raise UserError("cut off")


def test_a_start_that_fails_leaves_no_object(url: str) -> None:
    """--fresh would refuse to delete a log without a record."""
    driver = open_run(url, "run")
    driver.create()
    with pytest.raises(UserError, match="no such file"), _logged_records(driver):
        raise UserError("no such file")
    assert Bucket(url).names("run") == []


def test_fresh_in_a_bucket_can_be_repeated_after_an_outage(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its record, the rest would not be the folder of a run, and stay for ever."""
    driver = open_run(url, "run")
    driver.create()
    driver.update(status="failed")
    bucket = Bucket(url)
    for name in ("log.txt", "tensorboard/events", "usage.jsonl"):
        bucket.write(f"run/{name}", b"x")
    delete = Bucket.delete

    def in_part(self: Bucket, names: list[str]) -> None:
        delete(self, names[: len(names) // 2])
        raise UserError("the bucket does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "delete", in_part)
        with pytest.raises(UserError, match="does not answer"):
            driver.clear()
    assert bucket.names("run")
    again = open_run(url, "run")
    again.create()
    again.clear()
    assert not bucket.names("run")


def test_a_fresh_run_uploads_nothing_of_the_one_it_replaces(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers' node still has that one's checkpoint of the same step, and its records."""
    drivers_cache = os.environ["TRAINYARD_CACHE"]
    stored = {}
    for content in ("old", "new"):
        monkeypatch.setenv("TRAINYARD_CACHE", drivers_cache)
        driver = open_run(url, "run")
        driver.create()
        with driver.lease():
            driver.fetch()
            driver.clear()
            driver.update(status="running")
            monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "node"))
            for _ in range(2):  # the second process of the node, or a restart: nothing is emptied
                worker, _ = pickle.loads(pickle.dumps(driver)).on_this_node({})
                worker.append_metrics({"step": 10, "run": content})
            assert len(worker.metrics()) == 2
            store = worker.store()
            store.claim()
            store.commit(10, writer(content))
            (worker.path / "tensorboard").mkdir(exist_ok=True)
            (worker.path / f"tensorboard/events.{content}").write_text(content)
            worker.publish("tensorboard")
        name = store._index_names()[10]
        bucket = Bucket(url)
        stored[content] = {
            key.removeprefix(f"run/checkpoints/{name}/"): found.content
            for key in bucket.names(f"run/checkpoints/{name}")
            if (found := bucket.read(key)) is not None
        }
    assert stored["old"].keys() == stored["new"].keys()
    assert stored["old"] != stored["new"]
    assert bucket.names("run/tensorboard") == ["run/tensorboard/events.new"]


def on_an_empty_machine(config: TrainConfig, machine: Path, patch: pytest.MonkeyPatch) -> RunFolder:
    """The run, as fetched by a machine that never saw it."""
    patch.setenv("TRAINYARD_CACHE", str(machine))
    folder = open_run(config.storage_path, config.resolved_run_name)
    folder.create()
    folder.fetch()
    folder.store().bring(LAST_STEP)
    return folder


def test_each_machine_goes_on_where_the_last_one_was_killed(
    url: str, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at a step and in the middle of a checkpoint; every time the disk is another one."""
    folder = dataclasses.replace(small_run, storage_path=str(tmp_path), run_name="undisturbed")
    _, undisturbed = run_locally(folder)
    config = dataclasses.replace(small_run, storage_path=url, run_name="killed", ledger=False)
    command, _ = job(config)
    flags = command[2 : command.index("--ledger")]
    for point in ("step:8", "save:2"):
        killed = subprocess.run(
            [sys.executable, str(Path(__file__).parents[1] / "support/runs_locally.py"), *flags],
            env={**os.environ, "KILL_AT": point, "PYTHONPATH": os.pathsep.join(sys.path),
                 "TRAINYARD_CACHE": str(tmp_path / point)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert killed.returncode == -9, killed.stderr
    outcome, _ = run_locally(config)
    assert outcome.status == "finished"
    found = on_an_empty_machine(config, tmp_path / "empty", monkeypatch)
    assert weights_hash(found, LAST_STEP) == weights_hash(undisturbed, LAST_STEP)
    assert found.metrics() == undisturbed.metrics()


@pytest.mark.timeout(300)
@pytest.mark.long
def test_driver_killed_scratch_deleted_the_same_command(
    url: str, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jobs/train.py` itself, on Ray: a second driver is refused, the killed one is continued."""
    local = dataclasses.replace(small_run, storage_path=str(tmp_path), num_train_epochs=3)
    _, undisturbed = run_locally(dataclasses.replace(local, run_name="undisturbed"))
    config = dataclasses.replace(local, storage_path=url, run_name="driver", save_steps=1)
    command, environment = job(config)
    scratch = open_run(url, "driver")
    first = subprocess.Popen(
        command, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not Bucket(url).has("driver/lease.json"):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    with pytest.raises(UserError, match=f"already being run by process {first.pid} on"):
        fit(config)
    wait_for_step(scratch, 2, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    (tmp_path / "scratch").rename(tmp_path / "lost")  # its workers may live a moment longer

    last = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    answer = json.loads(last.stdout.splitlines()[-1])
    assert answer["model"] == f"{url}/driver/model"
    found = on_an_empty_machine(config, tmp_path / "empty", monkeypatch)
    assert weights_hash(found, LAST_STEP) == weights_hash(undisturbed, LAST_STEP)
    assert losses(found.path) == losses(undisturbed.path)
    assert found.read()["status"] == "finished"
    assert {"driver/model/config.json", "driver/model/model.safetensors", "driver/run.json"} <= set(
        Bucket(url).names("driver")
    )
    again = fit(config)  # finished: nothing is trained
    assert again.score == answer["score"]
