"""A step of a run in a bucket waits for no answer, and nothing is published without a lease."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage.test_fence import snapshot
from support.bucket_here import endpoint, url
from support.runs_locally import run_locally, weights_hash
from support.serve_requests import wait_until

from trainyard.config import TrainConfig
from trainyard.errors import SupersededError, UserError
from trainyard.storage import Bucket, RunFolder, exchange, open_run
from trainyard.storage.mirror import Mirror
from trainyard.training.worker.session import Session

__all__ = ["endpoint", "url"]  # fixtures

LEASE_OF_ANOTHER = b'{"id": "successor", "pid": 7, "host": "elsewhere"}'


class Outage:
    """Watch requests to the bucket by thread and patience, and refuse them in an outage."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refused: set[str] = set()
        """Names of the methods of `Bucket` that fail."""
        self.asked: set[tuple[str, str, bool]] = set()
        """Name of the method and of the thread, and if the bucket gives up within seconds."""
        for name in ("read", "has", "write", "upload"):
            patch.setattr(Bucket, name, self._watched(name, getattr(Bucket, name)))

    def _watched(self, name: str, request: Callable[..., Any]) -> Callable[..., Any]:
        def watched(bucket: Bucket, *rest: Any, **named: Any) -> Any:
            self.asked.add((name, threading.current_thread().name, bucket._impatient))
            if name in self.refused:
                time.sleep(0.05)
                raise UserError("the bucket does not answer")
            return request(bucket, *rest, **named)

        return watched


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A worker's run whose driver holds the lease; it talks to its bucket without a pause."""
    monkeypatch.setattr(exchange, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(exchange, "TELL_SECONDS", 0.0)
    folder = open_run(url, "run")
    with folder.lease():
        folder.fetch()
        yield folder
        folder.end_exchange()


def step(run: RunFolder, number: int) -> None:
    """Do what rank 0 does between two steps."""
    run.poll()
    run.wants_stop()
    run.append_metrics({"step": number})
    run.write_predictions({"validation": np.zeros((2, 2), np.float32)})
    run.set_progress(step=number)


def test_a_step_asks_the_bucket_nothing_and_stops_for_no_outage(
    run: RunFolder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(url)
    outage = Outage(monkeypatch)
    run.begin_exchange()
    step(run, 1)
    wait_until(lambda: bucket.has("run/progress.json"), 10)
    outage.refused = {"read", "has", "upload"}
    time.sleep(0.2)  # for a request that is under way
    outage.asked.clear()
    for number in range(2, 50):
        step(run, number)
        time.sleep(0.005)
    assert outage.asked == {("read", "exchange", True)}
    outage.refused = set()

    def is_uploaded() -> bool:
        stored = bucket.read("run/progress.json")
        return stored is not None and b"49" in stored.content

    wait_until(is_uploaded, 10)
    assert {"has", "upload"} <= {
        name for name, thread, brief in outage.asked if thread == "exchange" and brief
    }


def test_no_progress_is_uploaded_while_the_lease_cannot_be_read(
    run: RunFolder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, uploaded = Bucket(url), Bucket.has
    outage = Outage(monkeypatch)
    outage.refused = {"read"}
    run.begin_exchange()
    step(run, 1)
    time.sleep(0.3)
    assert ("read", "exchange", True) in outage.asked
    assert not uploaded(bucket, "run/progress.json")
    with pytest.raises(UserError, match="does not answer"):
        run.publish("metrics.jsonl")
    bucket.write("run/lease.json", LEASE_OF_ANOTHER)
    outage.refused = set()

    def train() -> None:
        for number in range(2, 1000):
            step(run, number)
            time.sleep(0.01)

    with pytest.raises(SupersededError, match="was taken over by process 7 on elsewhere"):
        train()
    run.end_exchange()
    assert not uploaded(bucket, "run/progress.json")


def test_a_lease_that_may_have_expired_is_confirmed_before_the_next_step(
    run: RunFolder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was suspended, or the outage lasts: then the step waits, with patience."""
    outage = Outage(monkeypatch)
    monkeypatch.setattr(exchange, "ASK_SECONDS", 1000.0)  # the thread is suspended, too
    monkeypatch.setattr(exchange, "EXPIRY_SECONDS", 0.2)
    run.begin_exchange()
    step(run, 1)
    assert not outage.asked
    time.sleep(0.3)
    step(run, 2)
    step(run, 3)
    assert outage.asked == {("read", "MainThread", False)}
    time.sleep(0.3)
    outage.refused = {"read"}
    with pytest.raises(UserError, match="does not answer"):
        step(run, 4)
    outage.refused = set()
    Bucket(url).write("run/lease.json", LEASE_OF_ANOTHER)
    with pytest.raises(SupersededError):
        step(run, 4)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_a_confirmation_counts_from_its_request_not_from_its_answer(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow answer says nothing of the time since the bucket gave it."""
    read, answers = Bucket.read, []

    def slow(bucket: Bucket, name: str) -> Any:
        answers.append(read(bucket, name))
        time.sleep(0.6)
        return answers[-1]

    monkeypatch.setattr(exchange, "ASK_SECONDS", 1000.0)
    monkeypatch.setattr(exchange, "EXPIRY_SECONDS", 0.5)
    run.begin_exchange()
    time.sleep(0.6)
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "read", slow)
        run.poll()
        assert len(answers) == 1
        run.poll()
        assert len(answers) == 2


WRITES: dict[str, Callable[[RunFolder], object]] = {
    "journal line": lambda run: run.append_metrics({"step": 200}),
    "progress": lambda run: run.set_progress(step=200),
    "predictions": lambda run: run.write_predictions({"validation": np.ones((2, 2))}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_written_into_the_scratch_folder_of_a_successor(
    run: RunFolder, url: str, monkeypatch: pytest.MonkeyPatch, write: Callable[[RunFolder], object]
) -> None:
    """It took over on this node while the worker was inside an evaluation."""
    monkeypatch.setattr(exchange, "ASK_SECONDS", 1000.0)  # between two turns of the thread
    run.begin_exchange()
    step(run, 1)
    Bucket(url).write("run/lease.json", b'{"released": true}')  # as if it had expired
    successor = open_run(url, "run")
    assert successor.path == run.path
    with successor.lease():
        successor.fetch()
        step(successor, 2)
        outage, before = Outage(monkeypatch), snapshot(run.path)
        with pytest.raises(SupersededError, match="belongs to another driver now; this attempt"):
            write(run)
        assert snapshot(run.path) == before
        assert not outage.asked
        write(successor)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_written_after_the_thread_has_seen_a_successor(
    run: RunFolder, url: str, write: Callable[[RunFolder], object]
) -> None:
    """It runs on another node, so this node's scratch folder is not marked."""
    Bucket(url).write("run/lease.json", LEASE_OF_ANOTHER)
    run.begin_exchange()
    assert run._exchange is not None
    run._exchange._thread.join(10)
    before = snapshot(run.path)
    with pytest.raises(SupersededError, match="was taken over by process 7 on elsewhere"):
        write(run)
    assert snapshot(run.path) == before


def test_an_unexpected_error_in_the_thread_is_logged_and_requests_are_still_seen(
    run: RunFolder, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the scratch folder is emptied while its progress is uploaded."""

    def gone(*_: object) -> None:
        raise FileNotFoundError("progress.json")

    monkeypatch.setattr(Mirror, "push_at_once", gone)
    run.begin_exchange()
    wait_until(lambda: "FileNotFoundError: progress.json" in caplog.text, 10)
    Bucket(url).write(f"run/{run.stop_request.name}", b"enough")
    wait_until(run.wants_stop, 10)
    step(run, 1)


def test_progress_waits_for_no_other_upload(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that writes a checkpoint may upload for minutes."""
    folder = open_run(url, "run")
    folder.create()
    assert folder.mirror is not None

    class Busy:
        def acquire(self, blocking: bool = True) -> bool:
            assert not blocking
            return False

    folder.set_progress(step=1)
    with monkeypatch.context() as patch:
        patch.setattr("trainyard.storage.mirror._uploading", Busy())
        folder.mirror.push_at_once("progress.json")
    assert not Bucket(url).has("run/progress.json")
    folder.mirror.push_at_once("progress.json")
    assert Bucket(url).has("run/progress.json")


def test_a_run_trains_through_an_outage_of_its_bucket(
    run: RunFolder,
    url: str,
    small_run: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From one checkpoint to the next, with an evaluation; it ends with the bits of another run."""
    config = dataclasses.replace(
        small_run, max_steps=12, save_steps=6, eval_steps=6, ledger=False, run_name="run"
    )
    _, whole = run_locally(dataclasses.replace(config, storage_path=str(tmp_path)))
    outage, finish, evaluate = Outage(monkeypatch), Session.finish_step, Session._evaluate
    waited: list[float] = []

    def finish_step(session: Session, done: int, *rest: Any) -> bool:
        began = time.monotonic()
        going_on = finish(session, done, *rest)
        if 8 <= done < 12:
            waited.append(time.monotonic() - began)
        if done == 7:
            session._join_checkpoint()
            outage.refused = {"read", "has", "write", "upload"}
        return going_on

    def evaluated(session: Session) -> None:
        evaluate(session)
        outage.refused = set()

    monkeypatch.setattr(Session, "finish_step", finish_step)
    monkeypatch.setattr(Session, "_evaluate", evaluated)
    monkeypatch.setattr("support.runs_locally.open_run", lambda *_: run)
    outcome, folder = run_locally(dataclasses.replace(config, storage_path=url))
    assert outcome.status == "finished"
    assert max(waited) < 2
    assert ("read", "exchange", True) in outage.asked
    assert not [name for name, thread, brief in outage.asked if thread == "exchange" and not brief]
    assert weights_hash(folder, 12) == weights_hash(whole, 12)
    assert folder.metrics() == whole.metrics()
