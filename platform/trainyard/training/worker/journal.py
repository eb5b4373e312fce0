"""Records of a run in progress: metrics.jsonl, trackers, progress.json, usage.jsonl, the ledger."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from trainyard.batch_plan import Rows
from trainyard.config import TrainConfig
from trainyard.errors import one_line
from trainyard.evaluation import figures
from trainyard.storage import RunFolder, add
from trainyard.training.outcome import TrainState
from trainyard.training.worker.trackers import open_trackers

PROGRESS_SECONDS = 0.5
USAGE_SECONDS = 5.0


class Journal:
    """Records of one attempt. Rank 0 writes them; each rank writes its own ledger.

    Lines after `first_step` are from an attempt that got further than its checkpoint. They are
    dropped, since this attempt writes them again.
    """

    def __init__(
        self, config: TrainConfig, folder: RunFolder, *, rank: int, first_step: int, last_step: int
    ) -> None:
        self._folder, self._main, self._last_step = folder, rank == 0, last_step
        self._batch_size, self._shown = config.train_batch_size, 0.0
        self._ledger: Any = None
        self._trackers: dict[str, Any] = {}
        self.notes: list[str] = []
        """Sentences for the user."""
        if config.ledger:
            folder.ledger.mkdir(exist_ok=True)
            name = f"from-{first_step:08d}-rank-{rank}-{time.time_ns()}.jsonl"
            self._ledger = (folder.ledger / name).open("a", buffering=1)
        if self._main:
            usage()  # CPU use is measured from here on
            self._used = time.monotonic()
            self._seconds_before = folder.progress().get("seconds", {})
            folder.rewind_metrics(first_step)
            self._trackers = open_trackers(config, folder, first_step)

    def record_micro_batch(
        self, step: int, epoch: int, micro_batch: int, rows: Rows, loss: Any
    ) -> None:
        """Write one forward pass to the ledger: its rows and, bit-exact, its share of the loss."""
        if self._ledger is not None:
            line = {"step": step, "epoch": epoch, "slot": micro_batch, "rows": rows.tolist()}
            self._ledger.write(json.dumps({**line, "loss": float(loss.detach()).hex()}) + "\n")

    def log_step(self, state: TrainState, epoch: float, learning_rate: float) -> None:
        """Log the mean loss since the last call and the next learning rate; in fp16, the scale."""
        values: dict[str, float] = {"loss": state.take_mean_loss(), "learning_rate": learning_rate}
        if state.loss_scale is not None:
            values |= {"loss_scale": state.loss_scale, "skipped_steps": state.skipped_steps}
        if self._main:
            self._folder.append_metrics({"step": state.step, "epoch": epoch, **values})
            self._report("train", values, state.step)

    def log_evaluation(self, state: TrainState) -> None:
        """Log the loss and the metrics of each split after `state.step` steps.

        metrics.jsonl has the loss as `eval_loss`, apart from the training loss. Trackers get it as
        SPLIT/loss.
        """
        if not self._main:
            return
        for split, found in state.evaluation.items():
            loss = found["eval_loss"]
            self._folder.append_metrics(
                {"step": state.step, "split": split, "eval_loss": loss, **figures(found)}
            )
            self._report(split, {"loss": loss, **found["metrics"]}, state.step)

    def _report(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Report values to the trackers; drop a tracker that fails, and let training continue."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(named, step)
            except Exception as error:  # their errors have no common base
                del self._trackers[name]
                reason = one_line(error, 200)
                self.notes.append(
                    f"warning: --report-to {name} failed at step {step} ({reason}); it has the steps "
                    "before, and metrics.jsonl has all"
                )

    def progress(
        self,
        state: TrainState,
        samples_per_second: float | None,
        seconds: Mapping[str, float],
        *,
        at_once: bool = False,
    ) -> None:
        """Write progress.json, at most twice a second, and every few seconds a row of usage.jsonl.

        Args:
            state: State of the run.
            samples_per_second: Training throughput; None before the first step.
            seconds: Time of this attempt by account.
            at_once: True to write both now.
        """
        now = time.monotonic()
        if self._main and (at_once or now - self._used >= USAGE_SECONDS):
            self._used = now
            trained = sum(add(self._seconds_before, seconds).values())
            with contextlib.suppress(
                OSError
            ):  # a full disk ends the run at its next record, with a clear error
                self._folder.append_usage({"step": state.step, "seconds": trained, **usage()})
        if self._main and (at_once or now - self._shown >= PROGRESS_SECONDS):
            self._shown = now
            self._folder.set_progress(
                step=state.step,
                last_step=self._last_step,
                rows_per_step=self._batch_size,
                loss=state.loss_sum / state.loss_count if state.loss_count else None,
                eval_loss=state.eval_loss,
                score=state.score,
                train_samples_per_second=samples_per_second,
                seconds=add(self._seconds_before, seconds),
            )

    def close(self) -> None:
        """Close the ledger and the trackers; a tracker that fails is only noted."""
        if self._ledger is not None:
            self._ledger.close()
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:  # their errors have no common base
                self.notes.append(
                    f"warning: --report-to {name} was not closed ({one_line(error, 200)}); "
                    "metrics.jsonl has all values"
                )


def usage() -> dict[str, float]:
    """Return the use of this node's CPU, memory and current GPU; CPU use is since the last call."""
    import psutil
    import torch

    found = {
        "cpu_percent": psutil.cpu_percent(),
        "memory_bytes": psutil.virtual_memory().used,
        "worker_memory_bytes": psutil.Process().memory_info().rss,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu_memory_bytes"] = total - free
        with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # it needs NVIDIA's library
            found["gpu_percent"] = torch.cuda.utilization()
    return found
