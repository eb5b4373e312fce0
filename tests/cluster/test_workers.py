"""How many workers fit a cluster, and what a run does when that changes."""

import contextlib
import dataclasses
import errno
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs_locally import run_locally, weights_hash
from support.serve_requests import wait_until
from training.test_loop import LAST_STEP

from trainyard import TrainConfig, UserError, fit
from trainyard.cluster import autoscaler, capacity, ray_train
from trainyard.errors import SupersededError
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.folder import RunFolder
from trainyard.storage.lease import LEASE
from trainyard.training.driver import restarts
from trainyard.training.outcome import Outcome
from trainyard.training.worker.session import Session


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[autoscaler.Node]:
    """Two nodes of four CPUs, one of them with a GPU: what `capacity` sees instead of a cluster."""
    seen: list[autoscaler.Node] = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}]
    monkeypatch.setattr(capacity, "nodes_for", lambda *_, **__: seen)
    monkeypatch.setattr(restarts, "nodes_for", lambda *_, **__: seen)
    monkeypatch.setattr(capacity, "RELEASE_SECONDS", 0.0)
    return seen


def config(workers: int | str, **fields: Any) -> TrainConfig:
    return TrainConfig(
        num_workers=workers, train_batch_size=64, per_device_train_batch_size=4, **fields
    )


@pytest.mark.parametrize(
    ("asked", "cpus"), [(1, 4), (2, 4), (4, 2), (8, 1), ("2:8", 1), ("1:2", 4), ("2:64", 1)]
)
def test_the_cpus_are_shared_out(nodes: list[autoscaler.Node], asked: int | str, cpus: int) -> None:
    assert nodes
    assert capacity.worker_resources(config(asked)) == {"CPU": cpus}


def test_a_gpu_brings_its_node_s_cpus(nodes: list[autoscaler.Node]) -> None:
    assert capacity.worker_resources(config(1, use_gpu=True)) == {"GPU": 1, "CPU": 4}
    nodes[1]["GPU"] = 2.0
    assert capacity.worker_resources(config("1:8", use_gpu=True)) == {"GPU": 1, "CPU": 2}


def test_what_cannot_fit_is_refused_with_what_would(nodes: list[autoscaler.Node]) -> None:
    assert nodes
    with pytest.raises(
        UserError,
        match=r"--num-workers 2:4 with 1 GPU, 1 CPU each do not fit: the cluster has 1 GPU, 8 CPU on "
        r"2 node\(s\), enough for 1; use fewer workers",
    ):
        capacity.worker_resources(config("2:4", use_gpu=True))


@pytest.mark.parametrize(
    ("room", "count"), [(0, 2), (1, 2), (2, 2), (3, 2), (7, 4), (8, 8), (99, 8)]
)
def test_as_many_as_fit_and_share_out(nodes: list[autoscaler.Node], room: int, count: int) -> None:
    nodes[:] = [{"CPU": float(room)}]
    assert capacity.worker_count(config("2:8"), {"CPU": 1.0}, attempt=1) == count
    assert capacity.worker_count(config(4), {"CPU": 1.0}, attempt=1) == 4


@pytest.mark.parametrize("asked", ["two", "0", "4:2", "0:2", "1:2:3", "-1", "2:"])
def test_a_number_of_workers_that_is_none(asked: str) -> None:
    with pytest.raises(UserError, match=rf"^num_workers is {asked}; it must be a number from 1"):
        config(asked)


def test_a_range_without_a_number_that_shares_out() -> None:
    with pytest.raises(UserError, match=r"over num_workers 3:3: use a train_batch_size that is a"):
        TrainConfig(num_workers="3:3", train_batch_size=8, per_device_train_batch_size=1)


@pytest.fixture
def elastic_run(small_run: TrainConfig, tmp_path: Path) -> TrainConfig:
    return dataclasses.replace(
        small_run,
        storage_path=str(tmp_path),
        run_name="elastic",
        num_workers="1:4",
        resources_per_worker={"CPU": 1},
        num_train_epochs=60,
    )


@pytest.mark.long
def test_a_run_grows_when_there_is_room_and_ends_as_if_alone(
    cluster: Any,
    elastic_run: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three of the four CPUs are taken at the start, and given back when the run trains."""
    monkeypatch.setattr(restarts, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(capacity, "RELEASE_SECONDS", 2.0)

    @cluster.remote(num_cpus=3)
    class Tenant:
        def here(self) -> bool:
            return True

    tenant = Tenant.remote()  # type: ignore[attr-defined]
    assert cluster.get(tenant.here.remote())
    folder = RunFolder(Path(elastic_run.storage_path) / "elastic")
    watch = restarts.NodeMonitor.__enter__

    def leave(self: restarts.NodeMonitor) -> restarts.NodeMonitor:
        entered = watch(self)
        cluster.kill(tenant)
        return entered

    monkeypatch.setattr(restarts.NodeMonitor, "__enter__", leave)
    fit(elastic_run)
    ranks = {path.name.partition("-rank-")[2][0] for path in folder.ledger.iterdir()}
    assert ranks == {"0", "1", "2", "3"}
    _, other = run_locally(dataclasses.replace(elastic_run, run_name="alone", num_workers=1))
    ours, theirs = (
        [
            line["loss"]
            for line in map(json.loads, (one.path / "metrics.jsonl").open())
            if "loss" in line
        ]
        for one in (folder, other)
    )
    assert len(ours) == LAST_STEP * 20
    assert ours == theirs
    assert weights_hash(folder, LAST_STEP * 20) == weights_hash(other, LAST_STEP * 20)


class Lost:
    """A trainer that loses worker 1 in every attempt, at the same step and with the same words."""

    attempts = 0

    def fit(self) -> Any:
        from ray.exceptions import RayActorError
        from ray.train import WorkerGroupError
        from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

        Lost.attempts += 1
        connection = RuntimeError("Connection closed by peer")
        death = WorkerHealthCheckFailedError("it was killed", failure=RayActorError())
        raise WorkerGroupError("lost", {0: connection, 1: death})


def test_lost_workers_are_started_again_unless_the_driver_leaves(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import WorkerGroupError

    monkeypatch.setattr(restarts, "_trainer", lambda *_: Lost())
    monkeypatch.setattr(restarts, "_leaving", set)
    monkeypatch.setattr(restarts, "release_orphans", lambda: None)  # there is no Ray here
    config = dataclasses.replace(small_run, max_failures=2)
    folder = RunFolder(tmp_path)
    run: Any = (config, None, None, folder, {"CPU": 1.0}, leaving := threading.Event())
    Lost.attempts = 0
    reason = str(restarts.run_workers(*run).error)
    assert Lost.attempts == 3
    assert reason.startswith("worker 1: WorkerHealthCheckFailedError: ")
    assert ", after 2 restart(s) without a new checkpoint (--max-failures)" in reason
    leaving.set()
    with pytest.raises(WorkerGroupError):
        restarts.run_workers(*run)
    assert Lost.attempts == 4


def test_a_new_checkpoint_starts_the_count_of_failures_anew(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run on preemptible nodes loses workers often, and each time further on."""
    folder = RunFolder(tmp_path)

    class LostFurtherOn(Lost):
        def fit(self) -> Any:
            for step in range(1, min(Lost.attempts, 5) + 1):  # the first attempt saves nothing
                (folder.checkpoints / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
            return super().fit()

    monkeypatch.setattr(restarts, "_trainer", lambda *_: LostFurtherOn())
    monkeypatch.setattr(restarts, "_leaving", set)
    monkeypatch.setattr(restarts, "release_orphans", lambda: None)
    config = dataclasses.replace(small_run, max_failures=1)
    Lost.attempts = 0
    restarts.run_workers(config, None, None, folder, {"CPU": 1.0}, threading.Event())  # type: ignore[arg-type]
    assert folder.store().steps() == [1, 2, 3, 4, 5]
    assert Lost.attempts == 7  # five further on, one restart without progress


@pytest.mark.parametrize("by_callback", [True, False])
def test_a_restart_for_more_workers_does_not_undo_the_stop_of_a_callback(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_callback: bool
) -> None:
    """The callback stopped in the step in which the workers were to restart."""
    stopped = Outcome(status="stopped", by_callback=by_callback)
    outcomes = [stopped, Outcome(status="finished")]
    found = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=outcomes.pop(0)))
    monkeypatch.setattr(restarts, "_trainer", lambda *_: found)
    monitor = SimpleNamespace(reason="room for 2 workers")
    monkeypatch.setattr(restarts, "NodeMonitor", lambda *_: contextlib.nullcontext(monitor))
    run: Any = (small_run, None, None, RunFolder(tmp_path), {"CPU": 1.0}, threading.Event())
    assert restarts.run_workers(*run).status == ("stopped" if by_callback else "finished")


class Superseded:
    """A trainer whose worker finds the run claimed by another attempt, twice, then finishes."""

    def __init__(self) -> None:
        self.attempts = 0

    def fit(self) -> Any:
        from ray.train import WorkerGroupError

        self.attempts += 1
        if self.attempts < 3:
            raise WorkerGroupError("superseded", {0: SupersededError("attempt x was superseded")})
        return SimpleNamespace(return_value=Outcome(status="finished"))


@pytest.mark.parametrize("lost", [True, False])
def test_a_driver_without_its_lease_restarts_nothing_and_the_rightful_one_counts_no_failure(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    trainer = Superseded()
    monkeypatch.setattr(restarts, "_trainer", lambda *_: trainer)
    monkeypatch.setattr(restarts, "_leaving", set)
    monkeypatch.setattr(restarts, "release_orphans", lambda: None)  # there is no Ray here
    config = dataclasses.replace(small_run, max_failures=0)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    run: Any = (config, None, None, folder, {"CPU": 1.0}, threading.Event())
    with folder.lease():
        if lost:
            (folder.path / LEASE).unlink()
            with pytest.raises(SupersededError, match="run 'run' was taken over"):
                restarts.run_workers(*run)
            assert trainer.attempts == 1
            assert not list(folder.path.iterdir())
        else:
            assert restarts.run_workers(*run).status == "finished"
            assert trainer.attempts == 3


def test_a_watch_that_does_not_see_the_cluster_looks_again(
    nodes: list[autoscaler.Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own exceptions are no RuntimeError; then a node leaves that was not leaving before."""
    from ray.exceptions import RaySystemError

    looks: Any = iter([RaySystemError("down"), {"old"}, {"old"}, TimeoutError(), {"old", "new"}])

    def leaving() -> set[str]:
        seen: Any = next(looks)
        if isinstance(seen, Exception):
            raise seen
        return set(seen)

    assert nodes
    monkeypatch.setattr(restarts, "_leaving", leaving)
    monkeypatch.setattr(restarts, "CHECK_SECONDS", 0.01)
    folder = RunFolder(tmp_path)
    with restarts.NodeMonitor(config(4), {"CPU": 1.0}, 4, folder) as watch:
        deadline = time.monotonic() + 10
        while not folder.wants_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert folder.wants_stop()
    assert watch.reason == "a node is about to leave"
    assert not folder.wants_stop()


def test_a_failure_without_words_is_a_sentence_too() -> None:
    assert ray_train.cause_of(AssertionError()) == "AssertionError: no message"


def test_a_full_disk_under_a_worker_is_said_and_not_tried_again(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunFolder, "append_metrics", full)
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), max_steps=2)
    outcome, _ = run_locally(config)
    assert outcome.status == "failed"
    assert str(outcome.error) == (
        "No space left on device; make room or fix the disk, then run the same command again"
    )


def test_an_attempt_that_was_thought_dead_logs_nothing_any_more(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host was cut off, a successor claimed the run, the network is back: no line, no checkpoint."""
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), run_name="zombie", save_steps=1
    )
    store = CheckpointStore(tmp_path / "zombie/checkpoints")
    finish = Session.finish_step

    def finish_step(self: Session, done: int, loss: Any, rows: int) -> bool:
        if done == 4:
            # The thread may still write step 3's, which a claim would fence as well.
            wait_until(lambda: store.steps()[-1:] == [3], 60)
            store.claim()
        return finish(self, done, loss, rows)

    monkeypatch.setattr(Session, "finish_step", finish_step)
    with pytest.raises(SupersededError):
        run_locally(config)
    folder = RunFolder(tmp_path / "zombie")
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3]
    assert store.steps()[-1] == 3


def test_a_driver_that_was_thought_dead_concludes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lease() as lease:
        lease.check()
        (tmp_path / LEASE).unlink()
        with RunFolder(tmp_path).lease():
            for harm in (lease.check, folder.clear, lambda: folder.update(status="failed")):
                with pytest.raises(SupersededError, match=r"run '.*' was taken over by process"):
                    harm()
    assert not (tmp_path / "run.json").exists()
