"""Ray Train: a lean `TorchTrainer`, its process group, and the causes of its failures."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainyard.cluster.autoscaler import may_grow
from trainyard.config import WorkerFlags


def build_trainer(
    config: WorkerFlags,
    work: Callable[[], Any],
    count: int,
    resources: Mapping[str, float],
    storage: Path,
    *,
    name: str = "ray",
    timeout_seconds: int = 600,
    backend: str | None = None,
    **failures: int,
) -> Any:
    """Build the trainer that runs `work` on `count` workers of `resources`.

    Args:
        config: Flags of the workers.
        work: Function that each worker runs.
        count: Number of workers.
        resources: Ray resources of each worker.
        storage: Folder for Ray Train's files, in a subfolder `name`.
        name: See `storage`.
        timeout_seconds: Maximum time that a worker waits for another.
        backend: torch's backend of the process group. Default: NCCL on GPUs, else gloo.
        failures: Fields of Ray's FailureConfig.
    """
    import ray.train

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # `NodeMonitor` sees them
    grows = may_grow(config)
    if grows:  # a new machine takes minutes to start
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    return _lean_trainer(grows)(
        work,
        scaling_config=ray.train.ScalingConfig(
            num_workers=count,
            use_gpu=config.use_gpu,
            resources_per_worker=dict(resources),
            label_selector=dict(config.node_labels) or None,
        ),
        run_config=ray.train.RunConfig(
            name=name, storage_path=str(storage), failure_config=ray.train.FailureConfig(**failures)
        ),
        torch_config=torch_config(timeout_seconds, backend),
    )


def _lean_trainer(grows: bool) -> Any:
    """Return Ray's TorchTrainer without the processes that a run does not need.

    The first would distribute data sets: there are none. The second would remove the placement group
    of a controller that died, as `release_orphans` does; it asks Ray's State API, which times out when
    two Rays run on a machine, so every run would end 12 seconds late. The third would ask an autoscaler
    for room, so each run would start a second later.
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
            return [each for each in callbacks if not isinstance(each, left_out)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if not grows:
                parts["scaling_policy"] = AsItIs(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)

    return Trainer


def torch_config(timeout_seconds: int, backend: str | None = None) -> Any:
    """Return Ray's process group over the network interface that Ray itself uses.

    By default gloo and NCCL ask the name service for the host's address: Debian answers 127.0.1.1,
    which no other host can reach.
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

    return Config(backend, timeout_s=timeout_seconds)


def name_interface() -> str | None:
    """Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, unless they are set; return the interface."""
    import psutil
    import ray.util

    address = ray.util.get_node_ip_address()
    name: str
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return name
    return None


def cause_of(error: Any) -> str:
    """Return the failure of the first worker, or why there were no workers, in one line.

    When one worker dies, the others fail by a RuntimeError of the connection to it: that is no cause.
    """
    worker, cause = "", error
    if failures := getattr(error, "worker_failures", None):
        dead = dead_ranks(error)
        rank = min(
            failures, key=lambda r: (r not in dead, isinstance(failures[r], RuntimeError), r)
        )
        worker, cause = f"worker {rank}: ", failures[rank]
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{worker}{type(cause).__name__}: {lines[-1][:300]}"


def dead_ranks(error: Any) -> set[int]:
    """Return the ranks of workers that were killed or lost with their node, and raised nothing."""
    from ray.train.v2._internal import exceptions

    gone = (exceptions.WorkerHealthCheckFailedError, exceptions.WorkerHealthCheckTimeoutError)
    failures = getattr(error, "worker_failures", {})
    return {rank for rank, cause in failures.items() if isinstance(cause, gone)}
