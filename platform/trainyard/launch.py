"""Workers on Ray Train: started, and started again while they were lost rather than wrong."""

import os
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainyard.autoscaler import may_grow
from trainyard.config import TrainConfig
from trainyard.data import PreparedData
from trainyard.errors import STORAGE_FAULTS, UserError, storage_fault
from trainyard.files import write_atomic
from trainyard.processor import claim_processor
from trainyard.progress import say
from trainyard.runs import RunFolder
from trainyard.tasks import Task
from trainyard.workers import Watch, worker_count


def run_workers(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
    leaving: threading.Event,
) -> dict[str, Any]:
    """Start the workers, and start them again while they were lost rather than wrong.

    Restarts are ours and not Ray Train's, which cannot tell a lost worker from a programme that
    fails in the same way every time. One that was asked for, because a node leaves or more
    workers fit, is no failure. None happens when the driver is `leaving`: Ray, shut down by it,
    would be started again by itself.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    before = None
    failures = attempt = 0
    while True:
        count = worker_count(config, dict(resources), attempt=attempt)
        trainer = _trainer(config, task, data, folder, resources, count)
        attempt += 1
        try:
            with Watch(config, dict(resources), count, folder) as watch:
                outcome: dict[str, Any] = trainer.fit().return_value
        except (TrainingFailedError, RayError) as error:
            if leaving.is_set():
                raise
            write_atomic(folder.path / "error.txt", "".join(traceback.format_exception(error)))
            folder.publish("error.txt")
            failure = (folder.progress().get("step"), cause_of(error))
            lost = _dead(error)
            _free_places()
        else:
            if (
                outcome["outcome"] == "stopped"
                and watch.reason
                and not folder.stop_request.exists()
            ):
                say(f"restarting from step {outcome['step']}: {watch.reason}")
                continue
            return outcome
        if failure == before and not lost:
            return _failed(f"the same failure twice, {failure[1]}", folder)
        if failures == config.max_failures:
            return _failed(f"{failure[1]}, after {failures} restart(s) (--max-failures)", folder)
        before = failure
        failures += 1
        say(f"restarting from the last checkpoint: {failure[1]}")


def _trainer(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
    count: int,
) -> Any:
    work = worker_function(config, task, data, folder, threads=int(resources.get("CPU", 1)))
    return build_trainer(
        config,
        work,
        count,
        resources,
        folder.path,
        max_failures=0,
        max_preemption_failures=0,
        # Workers that do not all come: tried again, or done with those that came.
        controller_failure_limit=3 if len(config.worker_counts) == 1 else 0,
    )


def build_trainer(
    config: TrainConfig,
    work: Callable[[], Any],
    count: int,
    resources: Mapping[str, float],
    storage: Path,
    *,
    name: str = "ray",
    timeout_seconds: int = 600,
    **failures: int,
) -> Any:
    """Ray's trainer that has `count` workers of `resources` run `work`.

    It keeps its own files in `storage`/`name`; `failures` are the fields of its FailureConfig, and
    `timeout_seconds` is how long a worker waits for another.
    """
    import ray.train

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # `Watch` sees nodes leave
    grows = may_grow(config)
    if grows:  # a machine takes minutes to come and to be set up
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    return _lean_trainer(grows)(
        work,
        scaling_config=ray.train.ScalingConfig(
            num_workers=count,
            use_gpu=config.use_gpu,
            resources_per_worker=dict(resources),
            label_selector=config.label_selector,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(**failures),
        ),
        torch_config=torch_config(timeout_seconds),
    )


def _lean_trainer(grows: bool) -> Any:
    """Ray's TorchTrainer without processes of its own that have nothing to do.

    One would hand out data sets: there are none here. One would remove the placement group of a
    controller that died, as `_free_places` does. It asks Ray's State API for the controller, which
    takes as long as it may when two Rays run on a machine: every run would end 12 seconds late. One
    would ask an autoscaler for room, for which each run would start more than a second later.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    left_out = DatasetsCallback, PlacementGroupCleanerCallback

    class AsItIs(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [one for one in callbacks if not isinstance(one, left_out)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if not grows:
                parts["scaling_policy"] = AsItIs(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)

    return Trainer


def _free_places() -> None:
    """Remove this job's placement groups whose controller died, or they would keep their CPUs."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for each in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(each)
        if group.creator_job_id.hex() == job and group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def torch_config(timeout_seconds: int) -> Any:
    """Ray's process group, over the network interface that Ray itself uses.

    Left alone, gloo and NCCL ask the name service for an address of the host: Debian answers
    127.0.1.1, which no other host can reach.
    """
    from dataclasses import dataclass

    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(name_interface)
            super().on_start(worker_group, backend_config)

    @dataclass
    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Config(timeout_s=timeout_seconds)


def name_interface() -> str | None:
    """Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, unless they are set; returns the interface."""
    import psutil
    import ray.util

    address = ray.util.get_node_ip_address()
    name: str
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return name
    return None


def cause_of(error: Any) -> str:
    """What the first failed worker died of, or why there were none, in one line.

    When one dies the others fail too, by a RuntimeError of the connection to it: that is no cause.
    """
    where, cause = "", error
    if failures := getattr(error, "worker_failures", None):
        dead = _dead(error)
        rank = min(
            failures, key=lambda r: (r not in dead, isinstance(failures[r], RuntimeError), r)
        )
        where, cause = f"worker {rank}: ", failures[rank]
    said = str(cause).strip().splitlines() or ["no message"]
    return f"{where}{type(cause).__name__}: {said[-1][:300]}"


def _dead(error: Any) -> set[int]:
    """Ranks of workers that are gone, by the kernel or with their node, rather than raised."""
    from ray.train.v2._internal import exceptions

    gone = (exceptions.WorkerHealthCheckFailedError, exceptions.WorkerHealthCheckTimeoutError)
    failures = getattr(error, "worker_failures", {})
    return {rank for rank, cause in failures.items() if isinstance(cause, gone)}


def _failed(reason: str, folder: RunFolder) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "reason": f"{reason}; see {folder.address('error.txt')}; the same command goes on from the "
        "last checkpoint",
    }


def worker_function(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    *,
    threads: int,
    on_evaluation: Callable[[], bool] | None = None,
) -> Callable[[], dict[str, Any]]:
    """What each worker runs: the loop, with as many threads as it has CPUs."""

    def work() -> dict[str, Any]:
        from trainyard.loop import train
        from trainyard.trainer_loop import train_by_trainer

        claim_processor(threads)
        loops = {"accelerate": train, "trainer": train_by_trainer}
        try:
            place, tables = folder.here(data.folders)
            here = replace(data, folders=tables)
            return loops[config.loop](config, task, here, place, on_evaluation)
        except UserError as error:  # returned, not raised: it would be tried again
            return {"outcome": "failed", "reason": str(error)}
        except OSError as error:
            if error.errno not in STORAGE_FAULTS:
                raise
            return {"outcome": "failed", "reason": storage_fault(error)}

    return work
