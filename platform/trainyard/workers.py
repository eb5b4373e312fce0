"""The processes of a run: Ray Train workers, started again when lost; or this process alone."""

import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from trainyard.config import TrainConfig
from trainyard.data import PreparedData
from trainyard.errors import UserError
from trainyard.files import write_atomic
from trainyard.progress import say
from trainyard.runs import RunFolder
from trainyard.tasks import Task


def run_workers(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
) -> dict[str, Any]:
    """Start the workers, and start them again while they were lost rather than wrong.

    Restarts are ours and not Ray Train's, which cannot tell a lost worker from a programme that
    fails in the same way every time.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = TorchTrainer(
        worker_function(config, task, data, folder, int(resources.get("CPU", 1))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker=dict(resources),
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
        torch_config=TorchConfig(timeout_s=600),
    )
    before = None
    for attempt in range(config.max_failures + 1):
        try:
            outcome: dict[str, Any] = trainer.fit().return_value
            return outcome
        except ray.train.TrainingFailedError as error:
            write_atomic(folder.path / "error.txt", "".join(traceback.format_exception(error)))
            failure = (folder.progress().get("step"), _cause(error))
        if failure == before:
            return _failed(f"the same failure twice, {failure[1]}", folder)
        before = failure
        if attempt < config.max_failures:
            say(f"restarting from the last checkpoint: {failure[1]}")
    return _failed(f"{failure[1]}, after {config.max_failures} restart(s) (--max-failures)", folder)


def _cause(error: Any) -> str:
    """What the first failed worker died of, in one line."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, cause = sorted(failures.items())[0]
    return f"worker {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[-1][:300]}"


def _failed(reason: str, folder: RunFolder) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "reason": f"{reason}; see {folder.path / 'error.txt'}; the same command goes on from the "
        "last checkpoint",
    }


def worker_function(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    threads: int,
    on_evaluation: Callable[[], bool] | None = None,
) -> Callable[[], dict[str, Any]]:
    """What each worker runs: the loop, with as many threads as it has CPUs."""

    def work() -> dict[str, Any]:
        import torch

        from trainyard.loop import train
        from trainyard.trainer_loop import train_by_trainer

        torch.set_num_threads(max(threads, 1))
        loops = {"accelerate": train, "trainer": train_by_trainer}
        try:
            return loops[config.loop](config, task, data, folder, on_evaluation)
        except UserError as error:  # returned, not raised: Ray would try again
            return {"outcome": "failed", "reason": str(error)}

    return work
