"""Ray Train: a lean `TorchTrainer`, its process group, and the cause of its failures."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainyard.cluster.autoscaler import may_grow
from trainyard.flags import WorkerFlags


def build_trainer(
    config: WorkerFlags,
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
            label_selector=dict(config.node_labels) or None,
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
    controller that died, as `release_orphans` does. It asks Ray's State API for the controller, which
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
        dead = dead_ranks(error)
        rank = min(
            failures, key=lambda r: (r not in dead, isinstance(failures[r], RuntimeError), r)
        )
        where, cause = f"worker {rank}: ", failures[rank]
    said = str(cause).strip().splitlines() or ["no message"]
    return f"{where}{type(cause).__name__}: {said[-1][:300]}"


def dead_ranks(error: Any) -> set[int]:
    """Ranks of workers that are gone, by the kernel or with their node, rather than raised."""
    from ray.train.v2._internal import exceptions

    gone = (exceptions.WorkerHealthCheckFailedError, exceptions.WorkerHealthCheckTimeoutError)
    failures = getattr(error, "worker_failures", {})
    return {rank for rank, cause in failures.items() if isinstance(cause, gone)}
