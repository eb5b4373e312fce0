"""Start training workers; restart after a lost worker, not after a deterministic error.

Workers also restart from a checkpoint when a node is about to leave or when more workers fit.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from trainyard.cluster import (
    Node,
    build_trainer,
    cause_of,
    claim_processor,
    dead_ranks,
    fitting,
    greatest_count,
    mistake_of,
    nodes_for,
    release_orphans,
    remedy_of,
    without_collection,
    worker_count,
)
from trainyard.config import TrainConfig
from trainyard.data import PreparedData
from trainyard.errors import STORAGE_FAULTS, SupersededError, UserError, storage_fault
from trainyard.storage import RunFolder, write_atomic
from trainyard.tasks import Task
from trainyard.terminal import say
from trainyard.training.outcome import Outcome, failed

CHECK_SECONDS = 2.0
GROW_AFTER = 5
"""Number of consecutive checks that must find room for more workers before a restart."""

log = logging.getLogger(__name__)


def run_workers(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
    leaving: threading.Event,
    callbacks: Sequence[Any] = (),
) -> Outcome:
    """Run the workers; allow `max_failures` restarts after failures without a new checkpoint.

    Ray Train's own restarts are off: Ray Train cannot tell a lost worker from a deterministic
    error. An error that repeats at the same step ends the run, unless workers were lost. A restart
    for a leaving node, or for more workers, is not a failure.

    Args:
        config: Flags of the run.
        task: Task of the run.
        data: Tokenized splits.
        folder: Folder of the run.
        resources: Ray resources of each worker.
        leaving: Set when the driver ends; a restart would then start Ray again.
        callbacks: `TrainerCallback`s for `loop="trainer"`.

    Returns:
        Outcome of the last attempt. A failure that a restart would repeat has the status "failed".

    Raises:
        SupersededError: Another driver has taken over the run.
        TrainingFailedError: Training failed while the driver was `leaving`.
        RayError: The connection to Ray failed while the driver was `leaving`.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    before: tuple[object, str] | None = None
    failures = attempt = saved = 0
    while True:
        count = worker_count(config, dict(resources), attempt=attempt)
        work = worker_function(
            config, task, data, folder, threads=int(resources.get("CPU", 1)), callbacks=callbacks
        )
        trainer = _trainer(config, work, folder, resources, count)
        attempt += 1
        try:
            with NodeMonitor(config, dict(resources), count, folder) as monitor:
                outcome: Outcome = trainer.fit().return_value
            for note in outcome.notes:
                say(note)
        except (TrainingFailedError, RayError) as error:
            if leaving.is_set():
                raise
            folder.check()
            release_orphans()
            if _was_claimed(error):
                say("restarting from the last checkpoint: a driver without a lease had claimed it")
                continue
            write_atomic(folder.path / "error.txt", "".join(traceback.format_exception(error)))
            folder.publish("error.txt")
            if (mistake := mistake_of(error)) is not None:
                return failed(mistake)
            failure = (folder.progress().get("step"), cause_of(error))
            remedy = remedy_of(error)
            lost = dead_ranks(error)
            # Progress is what a restart keeps: steps after the last checkpoint may be lost again.
            if (newest := max(folder.store().steps(), default=0)) > saved:
                failures, saved = 0, newest
        else:
            wanted = outcome.by_callback or folder.stop_is_requested()
            if outcome.status == "stopped" and monitor.reason and not wanted:
                say(f"restarting from step {outcome.state.step}: {monitor.reason}")
                continue
            return outcome
        if failure == before and not lost:
            return _failed(f"the same failure twice, {failure[1]}{remedy}", folder)
        if failures == config.max_failures:
            return _failed(
                f"{failure[1]}, after {failures} restart(s) without a new checkpoint (--max-failures)"
                f"{remedy}",
                folder,
            )
        before = failure
        failures += 1
        say(f"restarting from the last checkpoint: {failure[1]}")


def _trainer(
    config: TrainConfig,
    work: Callable[[], Outcome],
    folder: RunFolder,
    resources: Mapping[str, float],
    count: int,
) -> Any:
    backend = None  # the default: gloo
    if config.use_gpu:  # on CPUs the driver need not import torch
        from trainyard.training.worker.strategies import STRATEGIES

        backend = STRATEGIES[config.strategy].backend(config)
    return build_trainer(
        config,
        work,
        count,
        resources,
        folder.path,
        backend=backend,
        max_failures=0,
        max_preemption_failures=0,
        # If workers do not start, Ray Train retries a fixed count; `run_workers` reduces a range.
        controller_failure_limit=3 if len(config.worker_counts) == 1 else 0,
    )


def _failed(reason: str, folder: RunFolder) -> Outcome:
    return failed(
        UserError(
            f"{reason}; see {folder.address('error.txt')}; the same command resumes from the last "
            "checkpoint"
        )
    )


def _was_claimed(error: Exception) -> bool:
    """Return whether a worker stopped because another driver had claimed the checkpoints.

    A driver that still holds its lease may claim them again.
    """
    causes = getattr(error, "worker_failures", {}).values()
    return any(isinstance(cause, SupersededError) for cause in causes)


def _sentence(error: Exception, config: TrainConfig) -> UserError | None:
    from torch import OutOfMemoryError

    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(storage_fault(error)) if error.errno in STORAGE_FAULTS else None
    if isinstance(error, OutOfMemoryError):
        size, flag = f"{config.per_device_train_batch_size} rows", "--per-device-train-batch-size"
        if config.per_device_train_tokens is not None:
            size, flag = f"{config.per_device_train_tokens} tokens", "--per-device-train-tokens"
        return UserError(
            f"the GPU's memory is too small for micro-batches of {size}; use a smaller {flag}, or "
            "--gradient-checkpointing"
        )
    if "does not have a deterministic implementation" in str(error):
        operation = str(error).split(" ", 1)[0]
        return UserError(
            f"{operation} has no deterministic implementation on this GPU; use --no-deterministic"
        )
    return None


def worker_function(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    *,
    threads: int,
    on_evaluation: Callable[[], bool] | None = None,
    callbacks: Sequence[Any] = (),
) -> Callable[[], Outcome]:
    """Build the function that each worker runs: the training loop on `threads` CPU threads.

    With one worker, the function returns an error that the user can fix as a failed Outcome. With
    more workers it raises the error, which ends the workers that wait for this one.

    Args:
        config: Flags of the run.
        task: Task of the run.
        data: Tokenized splits.
        folder: Folder of the run.
        threads: CPU threads of the worker.
        on_evaluation: Called after each evaluation but the last; False stops a run of one worker.
        callbacks: `TrainerCallback`s for `loop="trainer"`.
    """

    def work() -> Outcome:
        with without_collection():
            from trainyard.training.worker.loop import train

        claim_processor(threads)
        try:
            place, tables = folder.on_this_node(data.folders)
            here = replace(data, folders=tables)
            if config.loop == "trainer":
                from trainyard.training.worker.trainer_loop import train_by_trainer  # slow import

                return train_by_trainer(config, task, here, place, on_evaluation, callbacks)
            return train(config, task, here, place, on_evaluation)
        except SupersededError:
            raise
        except (UserError, OSError, RuntimeError) as error:
            if (mistake := _sentence(error, config)) is None:
                raise
            if config.worker_counts == [1]:
                return failed(mistake)
            if mistake is error:
                raise
            raise mistake from error  # ends the other workers, which wait for this one

    return work


class NodeMonitor:
    """Make `count` workers save and stop when a node is about to leave, or when more workers fit.

    Training then resumes from the checkpoint with the workers that fit. The batches do not depend
    on the number of workers, so neither does the result.

    Attributes:
        reason: Reason of the request to stop, for a message; None without a request.
    """

    def __init__(self, config: TrainConfig, needed: Node, count: int, folder: RunFolder) -> None:
        self._config, self._needed, self._count, self._folder = config, needed, count, folder
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._monitor, daemon=True)
        self._roomy = 0
        self.reason: str | None = None

    def __enter__(self) -> Self:
        self._folder.request(self._folder.restart_request, None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._folder.request(self._folder.restart_request, None)

    def _monitor(self) -> None:
        from ray.exceptions import RayError

        known: set[str] | None = None
        while self.reason is None:
            try:
                leaving = _leaving()
                if known is None:
                    known = leaving
                else:
                    self._look(leaving - known)
            except (RuntimeError, OSError, RayError) as error:
                # The GCS does not answer. Ray Train decides if this ends the run.
                log.debug("cluster not seen: %s", error)
            if self._done.wait(CHECK_SECONDS):
                return

    def _look(self, leaving: set[str]) -> None:
        if leaving:
            self._ask("a node is about to leave")
            return
        room = self._count
        if self._count < self._config.worker_counts[-1]:
            room += fitting(nodes_for(self._config, free=True), self._needed)
        greatest = greatest_count(self._config.worker_counts, room)
        self._roomy = self._roomy + 1 if greatest > self._count else 0
        if self._roomy == GROW_AFTER:
            self._ask(f"room for {greatest} workers")

    def _ask(self, reason: str) -> None:
        self._folder.request(self._folder.restart_request, reason)
        self.reason = reason


def _leaving() -> set[str]:
    """Return the ids of draining nodes that hold placement groups.

    Idle nodes are left out, since an autoscaler drains them routinely.
    """
    from ray._private.state import state
    from ray.util import placement_group_table

    busy = {
        node
        for group in placement_group_table().values()
        if group["state"] == "CREATED"
        for node in group["bundles_to_node_id"].values()
    }
    return busy & set(state.get_draining_nodes())
