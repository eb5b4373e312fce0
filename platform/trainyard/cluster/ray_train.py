"""Ray Train: a trainer without unneeded processes, and causes of failures."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainyard.cluster.autoscaler import may_grow
from trainyard.cluster.memory import SMALLER_BATCHES, memory_death, memory_remedy
from trainyard.config import WorkerFlags
from trainyard.errors import UserError

GROUP_SECONDS = 600
"""Maximum seconds that an operation of a process group waits for a worker."""


def build_trainer(
    config: WorkerFlags,
    work: Callable[[], Any],
    count: int,
    resources: Mapping[str, float],
    storage: Path,
    *,
    name: str = "ray",
    timeout_seconds: int = GROUP_SECONDS,
    backend: str | None = None,
    **failures: int,
) -> Any:
    """Build the trainer that runs `work` on each of `count` workers.

    Args:
        config: Flags of the workers.
        work: Function that each worker runs.
        count: Number of workers.
        resources: Ray resources of each worker.
        storage: Parent of the folder `name`, which holds Ray Train's files.
        name: Name of the run for Ray Train.
        timeout_seconds: Maximum seconds that an operation of the process group waits for a worker.
        backend: Backend of torch's process group. Default: NCCL on GPUs, else gloo.
        failures: Fields of Ray's FailureConfig.
    """
    import ray.train

    from trainyard.cluster.process_group import GroupConfig

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # `NodeMonitor` handles it
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
        backend_config=GroupConfig(
            backend or ("nccl" if config.use_gpu else "gloo"), timeout_seconds
        ),
    )


def _lean_trainer(grows: bool) -> Any:
    """Build a subclass of DataParallelTrainer without the helpers that a run does not need.

    DatasetsCallback distributes data sets; a run has none. PlacementGroupCleanerCallback duplicates
    `release_orphans`, and delays the end of each run when two Rays share a host. Resource requests
    to an autoscaler delay the start; they are sent only if the cluster `grows`.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    left_out = DatasetsCallback, PlacementGroupCleanerCallback

    class AsItIs(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if not isinstance(each, left_out)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if not grows:
                parts["scaling_policy"] = AsItIs(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)

        def _register_sigint_handler(self, controller: Any) -> None:
            pass  # Ray's handler would end a job without a word; the process has another

    return Trainer


def cause_of(error: Any) -> str:
    """Return the rank, type and last line of the error that most likely caused a failed training.

    When a worker dies, the others raise RuntimeErrors about their lost connections. So dead workers
    come first, then workers with other errors, then the lowest rank. An `error` without worker
    failures is the cause itself. The last line is cut after 300 characters; `memory_death` replaces
    type and line for a lack of memory.
    """
    worker, cause = _first_failure(error)
    if death := memory_death(cause):
        return f"{worker or 'a process'} {death}"
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{worker}{': ' if worker else ''}{type(cause).__name__}: {lines[-1][:300]}"


def remedy_of(error: Any, lower: str = SMALLER_BATCHES) -> str:
    """Return a clause with the fix if the cause of `error` is a lack of memory, else "".

    Args:
        error: Error of a failed training, as for `cause_of`.
        lower: Flags that make batches smaller.
    """
    return f"; {memory_remedy(lower)}" if memory_death(_first_failure(error)[1]) else ""


def _first_failure(error: Any) -> tuple[str, Any]:
    """Return the worker and the error that most likely caused a failed training; "" for none."""
    if not (failures := getattr(error, "worker_failures", None)):
        return "", error
    dead = dead_ranks(error)
    rank = min(failures, key=lambda r: (r not in dead, isinstance(failures[r], RuntimeError), r))
    return f"worker {rank}", failures[rank]


def mistake_of(error: Any) -> UserError | None:
    """Return the UserError that a worker raised, which a restart would repeat; None without one."""
    causes = getattr(error, "worker_failures", {}).values()
    return next((cause for cause in causes if isinstance(cause, UserError)), None)


def dead_ranks(error: Any) -> set[int]:
    """Return the ranks of workers that failed their health check: killed, hung or lost."""
    from ray.train.v2._internal import exceptions

    gone = (exceptions.WorkerHealthCheckFailedError, exceptions.WorkerHealthCheckTimeoutError)
    failures = getattr(error, "worker_failures", {})
    return {rank for rank, cause in failures.items() if isinstance(cause, gone)}
