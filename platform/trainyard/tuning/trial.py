"""One trial: `fit` in a thread, reporting each evaluation and waiting for leave to go on.

The run folder is the truth. A trial that is started again reports what its folder holds, then goes on
from its checkpoint; one that had ended reports and ends. Whoever stops it, the thread has ended and
has released all it held when `stop` returns: a Ray Train run of several workers is asked to save and
ends by itself, so that its placement group is removed by Ray Train and not left behind.
"""

import queue
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.data import PreparedData, is_test
from trainyard.errors import Diverged, Interrupted, SupersededError, UserError
from trainyard.flags import ModelFlags
from trainyard.models import build_tokenizer
from trainyard.storage import (
    ENDED,
    EXPIRY_SECONDS,
    Fence,
    RunFolder,
    Stopwatch,
    TrialSpec,
    now,
    write_atomic,
)
from trainyard.tasks import Task
from trainyard.training import Trial, fit
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.population import inherit
from trainyard.tuning.space import DATA_FIELDS

WORST = -1e9
"""What a trial without a score reports: finite, for Tune's schedulers take means."""
TIE_BREAK = 1e-9
"""Of equal scores the lower training loss stands higher. In their first steps trials often answer one
class to all rows and score alike, and schedulers stop no tie."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all trials of a sweep have in common; travels to each process once."""

    sweep: str
    config: SweepConfig
    task: Task
    data: Mapping[tuple[Any, ...], PreparedData]
    """Tokenized splits by the values of DATA_FIELDS."""
    per_worker: Mapping[str, float]
    folders: Mapping[str, Path]
    """Where trials of each kind lie."""
    fence: Fence | None = None
    """Of the sweep's lease: trials of a sweep that was taken over end."""

    def run(self, spec: TrialSpec) -> RunFolder:
        """Return the folder of a trial."""
        return RunFolder(self.folders[spec.kind] / spec.name, fence=self.fence)

    def train_config(self, spec: TrialSpec) -> TrainConfig:
        """The run of a trial."""
        return self.config.train_config(
            spec.hyperparameters,
            storage_path=str(self.folders[spec.kind]),
            run_name=spec.name,
            resources_per_worker=dict(self.per_worker),
        )


def data_key(config: TrainConfig) -> tuple[Any, ...]:
    """Which tokenization a run reads."""
    return tuple(getattr(config, field) for field in DATA_FIELDS)


class TrialProcess:
    """One trial at a time in this process; the same process takes trial after trial."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def start(self, spec: TrialSpec) -> None:
        """Take up a trial. Nothing is trained before the first `next_report` needs it."""
        self._started, self._watch = time.time(), Stopwatch()
        self._config = self._context.train_config(spec)
        self._spec = spec
        self._run = self._context.run(spec)
        self._reported: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self._events: queue.Queue[str] = queue.Queue()
        self._leave: queue.Queue[bool] = queue.Queue()
        self._waiting = False
        self._waited = 0.0
        self._ended: float | None = None
        self._defect: Exception | None = None

    def next_report(self) -> dict[str, Any]:
        """Go on to the next evaluation, or to the end; what Tune is told of it."""
        if (report := self._unreported()) is not None and self._thread is None:
            return report
        if self._thread is None:
            over = self._spec.is_over(len(self._reported))
            if over or self._run.read().get("status") in ENDED:
                return self._report(done=True)
            self._thread = threading.Thread(target=self._fit, daemon=True)
            self._thread.start()
        self._give_leave()
        polled = self._config.worker_counts != [1]  # its loop is elsewhere, and does not wait
        while True:
            event = self._next_event(POLL_SECONDS if polled else None)
            if event == "ended":
                self._thread.join()
                if self._defect is not None:
                    raise self._defect
                return self._report(done=True)
            if (report := self._unreported()) is not None:
                return report
            self._give_leave()  # an evaluation done again after a restart: reported already

    def stop(self) -> None:
        """End a trial that the scheduler stops, saved; returns when it holds nothing any more."""
        if self._thread is None:
            # Judged by what its folder held; one that had not begun stays as it is.
            if self._reported and self._run.read()["status"] not in ENDED:
                self._close("pruned", self._verdict())
            return
        if not self._thread.is_alive():
            return
        while self._thread.is_alive():
            self._run.stop_request.touch()
            self._give_leave(going_on=False)
            self._next_event(POLL_SECONDS)
        self._run.stop_request.unlink(missing_ok=True)
        if self._run.read()["status"] not in ENDED:
            self._close("pruned", self._verdict())

    def _verdict(self) -> str:
        return f"stopped by the scheduler at evaluation {len(self._reported)}"

    def _next_event(self, timeout: float | None) -> str | None:
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        self._waiting = event == "evaluation"
        return event

    def _give_leave(self, *, going_on: bool = True) -> None:
        if self._waiting:
            self._waiting = False
            self._leave.put(going_on)

    def _fit(self) -> None:
        status, reason = "finished", None
        try:
            _limit_gpu_memory(self._context.per_worker)
            data = self._context.data[data_key(self._config)]
            trial = Trial(
                task=self._context.task,
                data=data,
                tokenizer=_tokenizer(data.model, self._config.max_length),
                record={"sweep": self._context.sweep, "trial": self._spec.as_dict()},
                on_evaluation=self._ask,
                watch=self._watch,
            )
            if self._spec.parent is not None:
                inherit(self._run, RunFolder(self._run.path.parent / self._spec.parent))
            self._watch.lap("start_up")  # imports, in the first trial of a process
            # The node of its predecessor may have died a moment ago.
            fit(self._config, trial, patience=2 * EXPIRY_SECONDS, fence=self._context.fence)
        except Interrupted as stop:
            status, reason = "stopped", str(stop)
        except SupersededError as error:  # nothing may be written any more
            self._defect = error
            self._events.put("ended")
            return
        except UserError as error:
            status = "diverged" if isinstance(error, Diverged) else "failed"
            reason = str(error)
        except Exception as error:
            write_atomic(self._run.path / "error.txt", traceback.format_exc())
            status, reason = "failed", f"{type(error).__name__}: {error}; see error.txt"
        try:
            while self._unreported() is not None:
                pass
            self._watch.lap("records")
            self._ended = time.time()
            self._run.add_seconds(self._watch.take())
            self._close(status, reason)
            _free_memory()
        except Exception as error:  # the folder cannot be written: for Tune to try again elsewhere
            self._defect = error
        self._events.put("ended")

    def _close(self, status: str, reason: str | None) -> None:
        claim = self._run.checkpoints / "attempt.json"
        begun = claim.stat().st_mtime if claim.exists() else self._started
        known = self._run.read()
        until = self._ended or time.time()
        self._run.update(
            status=status,
            reason=reason,
            sweep=self._context.sweep,
            trial=self._spec.as_dict(),
            started=known.get("started", now()),
            ended=now(),
            trial_score=max(self._reported.values(), default=None),
            trial_evaluations=len(self._reported),
            startup_seconds=round(max(begun - self._started, 0.0), 3),
            loop_seconds=round(max(until - begun - self._waited, 0.0), 3),
        )
        if status in ENDED:
            self._run.store().keep(())

    def _ask(self) -> bool:
        """Called by the loop after an evaluation: wait for what the scheduler says."""
        self._events.put("evaluation")
        asked = time.monotonic()
        going_on = self._leave.get()
        self._waited += time.monotonic() - asked
        return going_on and not self._spec.is_over(len(self._reported))

    def _unreported(self) -> dict[str, Any] | None:
        """The next evaluation in the folder that was not reported yet."""
        for step, score in evaluations(self._run, self._context).items():
            if step not in self._reported:
                self._reported[step] = score
                return self._report(done=False)
        return None

    def _report(self, *, done: bool) -> dict[str, Any]:
        score = max(self._reported.values(), default=WORST)
        loss = mean_loss(self._run, max(self._reported, default=0))
        return {
            "score": score,
            "standing": score - TIE_BREAK * loss,
            "evaluation": len(self._reported),
            "done": done,
            "by_itself": done,  # Tune sets `done` too when the scheduler ends a trial; this it leaves
        }


def evaluations(run: RunFolder, context: Context) -> dict[int, float]:
    """Score of each evaluation in a run's metrics.jsonl, by step: the mean over its splits."""
    found: dict[int, list[float]] = {}
    for line in run.metrics():
        if "split" in line:
            found.setdefault(line["step"], []).append(line["metrics"][context.task.score])
    folders = next(iter(context.data.values())).folders
    splits = sum(not is_test(name) for name in folders) - 1
    return {
        step: sum(values) / len(values) for step, values in found.items() if len(values) == splits
    }


def mean_loss(run: RunFolder, last_step: int) -> float:
    """Mean of the training losses that metrics.jsonl holds up to a step; 0 when there are none."""
    losses = [
        line["loss"] for line in run.metrics() if "loss" in line and line["step"] <= last_step
    ]
    return sum(losses) / len(losses) if losses else 0.0


@lru_cache(maxsize=4)
def _tokenizer(model: str, max_length: int) -> Any:
    return build_tokenizer(ModelFlags(model_name_or_path=model, max_length=max_length))


def _limit_gpu_memory(per_worker: Mapping[str, float]) -> None:
    """Trials that share a GPU keep to their share of its memory: nothing else separates them."""
    import torch

    if 0 < per_worker.get("GPU", 0) < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(per_worker["GPU"])


def _free_memory() -> None:
    """What the ended trial held, for the next one in this process."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def build_trainable(context: Context) -> type:
    """The class that Tune runs: a `TrialProcess`, kept for trial after trial."""
    from ray import tune

    class SweepTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.process = TrialProcess(context)
            self.process.start(TrialSpec(**config["spec"]))

        def step(self) -> dict[str, Any]:
            return self.process.next_report()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.process.stop()
            self.process.start(TrialSpec(**new_config["spec"]))
            return True

        def cleanup(self) -> None:
            self.process.stop()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002
            return {}  # the run folder has them

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing: `start` reads the run folder."""

    return SweepTrial
