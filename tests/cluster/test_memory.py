"""Sentences on processes that died for lack of memory, from Ray's own errors and words."""

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.tune.execution import tune_controller

from trainyard import TrainConfig
from trainyard.cluster import cause_of, memory_death, remedy_of
from trainyard.fleet.driver.ray_tune import _ActorManager
from trainyard.storage.folder import RunFolder
from trainyard.training.driver import restarts

RAYLET = """1 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 10.0.50.112, ID: 4cb25bc0) was 28.62GB used / 30.00GB limit (0.954017)
OOM kill reason: node memory usage is above the threshold
Object store memory usage: [- objects spillable: 0]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(6d86283d): pid=1879, actual memory used=24.44GB, worker ID=3e3d8f80)
]
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
1879\t24.44\tray::RayTrainWorker.execute
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/. \
Consider provisioning more memory on this node or reducing task parallelism."""
"""Report of the raylet, shortened; its format is checked below."""
KERNEL = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common "
    "causes include: (1) the process was killed by the OOM killer due to high memory usage"
)
BY_RAY = "was ended by Ray because the memory of its node was full (28.62 of 30.00 GB used)"
REMEDY = (
    "; run fewer workers on a node, use nodes with more memory, or lower "
    "--per-device-train-batch-size or --max-length (then with --fresh)"
)


def died(message: str) -> ActorDiedError:
    context = ActorDiedErrorContext(error_message=message, class_name="RayTrainWorker")
    context.actor_id = bytes(16)
    return ActorDiedError(context)


def lost(failure: Exception) -> WorkerGroupError:
    """Worker 1 died of `failure`, and worker 0 noticed."""
    death = WorkerHealthCheckFailedError("A worker health check failed.", failure=failure)
    return WorkerGroupError("…", {0: RuntimeError("Connection closed by peer"), 1: death})


def in_task(error: Exception) -> Exception:
    """The error as `ray.get` raises it, if the controller's own code met it."""
    found: Exception = RayTaskError(
        "run", "".join(traceback.format_exception(error)), error
    ).as_instanceof_cause()
    return found


@pytest.mark.parametrize(
    ("error", "subject"),
    [
        (lost(OutOfMemoryError(RAYLET)), "worker 1"),
        (OutOfMemoryError(RAYLET), "a process"),  # the controller itself
        (ControllerError(OutOfMemoryError(RAYLET)), "a process"),  # while workers start
        (in_task(OutOfMemoryError(RAYLET)), "a process"),
    ],
)
def test_the_memory_monitor_of_ray_has_a_sentence(error: Exception, subject: str) -> None:
    assert cause_of(error) == f"{subject} {BY_RAY}"
    assert remedy_of(error) == REMEDY


def test_a_process_that_was_killed_without_a_reason_may_have_lacked_memory() -> None:
    error = lost(died(KERNEL))
    assert cause_of(error) == (
        "worker 1 was killed or crashed; often the memory of its node was full (dmesg there tells)"
    )
    assert remedy_of(error, "--batch") == (
        "; run fewer workers on a node, use nodes with more memory, or lower --batch"
    )


@pytest.mark.parametrize(
    "error",
    [
        lost(died("The actor died because its node has died. Node Id: 4cb25bc0")),
        lost(RayActorError()),
        RuntimeError("killed"),
    ],
)
def test_other_deaths_are_not_blamed_on_memory(error: Exception) -> None:
    assert memory_death(error) is None
    assert remedy_of(error) == ""
    assert "memory" not in cause_of(error)


def test_the_words_are_those_of_the_installed_ray() -> None:
    core = Path(ray.__file__).parent / "core" / "src" / "ray"
    raylet = (core / "raylet" / "raylet").read_bytes()
    assert b"worker(s) were killed due to the node running low on memory. %s" in raylet
    assert b" was %sGB used / %sGB limit (" in raylet
    server = (core / "gcs" / "gcs_server").read_bytes()
    assert b"its worker process has died. Worker exit type: " in server


def test_a_run_that_lacks_memory_fails_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def fit(self) -> Any:
            raise self.error

    monkeypatch.setattr(restarts, "_leaving", set)
    monkeypatch.setattr(restarts, "release_orphans", lambda: None)  # there is no Ray here
    config = TrainConfig(max_failures=1)
    folder = RunFolder(tmp_path)
    run: Any = (config, None, None, folder, {"CPU": 1.0}, threading.Event())
    after = (
        f"{REMEDY}; see {tmp_path / 'error.txt'}; the same command resumes from the last checkpoint"
    )
    for error, reason in (
        (OutOfMemoryError(RAYLET), f"the same failure twice, a process {BY_RAY}"),
        (
            lost(OutOfMemoryError(RAYLET)),
            f"worker 1 {BY_RAY}, after 1 restart(s) without a new checkpoint (--max-failures)",
        ),
    ):
        trainer = Trainer(error)
        monkeypatch.setattr(restarts, "_trainer", lambda *_, trainer=trainer: trainer)
        assert str(restarts.run_workers(*run).error) == reason + after


def test_tune_takes_an_actor_that_ray_ended_for_memory_as_a_dead_one() -> None:
    """Not as an unexpected error, which ends the whole sweep."""
    errors: list[Exception] = []

    def noted(_: object, error: Exception) -> None:
        errors.append(error)

    assert tune_controller.RayActorManager is _ActorManager
    resources: Any = SimpleNamespace(free_resources=lambda **_: None)
    manager = _ActorManager(resources)
    tracked = TrackedActor(0, on_error=noted)
    manager._live_actors_to_ray_actors_resources[tracked] = (None, None)
    fail: Callable[..., None] = manager._actor_task_failed
    fail(TrackedActorTask(tracked, on_error=noted), OutOfMemoryError(RAYLET))
    assert manager.is_actor_failed(tracked)
    assert [type(error) for error in errors] == [RayActorError, RayActorError]
    assert memory_death(errors[0]) == BY_RAY
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail(TrackedActorTask(tracked, on_error=noted), ValueError())
