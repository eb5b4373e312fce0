"""Ray Tune's actor: a process that trains runs of a fleet, one after another.

All state is in the run folder. A restarted trial first reports the evaluations in its folder, then
resumes from its checkpoint; a trial that had ended only reports. `stop` returns after the training
thread has ended and released its resources. A run with Ray Train workers gets a request to save and
ends normally, so that Ray Train removes its placement group.
"""

import gc
import queue
import shutil
import threading
import time
import traceback
from functools import lru_cache
from typing import Any

from ray import tune

from trainyard.config import ModelFlags, naming_flags
from trainyard.errors import Diverged, HeldError, Interrupted, SupersededError, UserError
from trainyard.fleet.spec import (
    TAKEOVER_SECONDS,
    VERDICT,
    Ended,
    RunSpec,
    Shared,
    pruned,
    reason_of,
    tokenization_of,
)
from trainyard.models import build_tokenizer
from trainyard.storage import (
    ENDED,
    RunFolder,
    Stopwatch,
    TrialSpec,
    link_tree,
    now,
    sync_folder,
    sync_tree,
    write_atomic,
)
from trainyard.training import Trial, fit

WORST = -1e9
"""Reported score of a trial without evaluations; finite, since Tune's schedulers compute means."""
TIE_BREAK = 1e-9
"""Weight of the mean training loss in the reported standing, which orders trials of equal score.

Early in training, trials often predict one class for all rows, and schedulers do not stop tied
trials.
"""
POLL_SECONDS = 0.2


class RunProcess:
    """Train runs in this process, one at a time.

    Args:
        shared: Data and task of the trials of a sweep; None for ordinary runs.
    """

    def __init__(self, shared: Shared | None) -> None:
        self._shared = shared

    def start(self, spec: RunSpec) -> None:
        """Set the next run. Training starts when `next_report` has no stored evaluation left."""
        self._started, self._stopwatch = time.time(), Stopwatch()
        self._spec, self._trial, self._run = spec, spec.trial, spec.folder
        self._verdict = self._run.path / VERDICT
        self._verdict.unlink(missing_ok=True)  # stale: the scheduler decides again
        self._reported: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self._events: queue.Queue[str] = queue.Queue()
        self._permits: queue.Queue[bool] = queue.Queue()
        self._waiting = False
        self._waited = 0.0
        self._ended: float | None = None
        self._outcome: Ended | None = None
        self._defect: Exception | None = None

    def next_report(self) -> dict[str, Any]:
        """Train to the next evaluation, or to the end; return the report for Tune.

        Returns:
            Best score, standing, number of evaluations, and `done` with the outcome in `ended`.

        Raises:
            Exception: The end could not be recorded, or another driver has taken over the run.
        """
        if (report := self._unreported()) is not None and self._thread is None:
            return report
        if self._thread is None:
            if self._trial is not None and (ended := self._known_end(self._trial)) is not None:
                return self._report(ended)
            self._thread = threading.Thread(target=self._fit, daemon=True)
            self._thread.start()
        self._permit()
        while True:
            # A loop in other processes does not wait, so its evaluations are polled.
            event = self._next_event(None if self._spec.trains_in_process else POLL_SECONDS)
            if event == "ended":
                self._thread.join()
                if self._defect is not None:
                    raise self._defect
                return self._report(self._outcome)
            if (report := self._unreported()) is not None:
                return report
            self._permit()  # this evaluation was already reported before a restart

    def stop(self) -> None:
        """Save and end a run; return when its resources are free.

        A trial with a VERDICT is recorded as pruned. Without one the driver has failed, and the
        same command resumes the trial.

        Raises:
            HeldError: Another process still holds the lease of a trial after TAKEOVER_SECONDS.
        """
        if self._thread is None:
            if not self._reported:  # neither started, nor reported from stored evaluations
                return
        elif not self._thread.is_alive():
            if self._outcome is not None:  # the run ended before the decision
                self._verdict.unlink(missing_ok=True)
            return
        else:
            while self._thread.is_alive():
                self._run.stop_request.touch()
                self._permit(resume=False)
                self._next_event(POLL_SECONDS)
            self._run.stop_request.unlink(missing_ok=True)
        if self._trial is None or not self._verdict.exists():
            return
        # A predecessor that was killed may have left its lease, and workers that still train.
        with self._run.lease(TAKEOVER_SECONDS):
            if self._run.read().get("status") not in ENDED:
                self._close(pruned(len(self._reported)))
            self._verdict.unlink(missing_ok=True)

    def _known_end(self, trial: TrialSpec) -> Ended | None:
        """Return how the run ended; None if it must train.

        A stretch whose process was killed after its last checkpoint is recorded as ended. Without
        that checkpoint it trains again from the one before.
        """
        known = self._run.read()
        status, reason = known.get("status"), known.get("reason")
        if status in ENDED:
            return Ended(status, reason)
        if trial.is_over(known.get("trial_evaluations", 0)):
            return Ended("stopped", reason)
        if not trial.is_over(len(self._reported)):
            return None
        with self._run.lease(TAKEOVER_SECONDS):
            newest = self._run.store().newest()
            if newest is None or newest[0] < max(self._reported):
                return None
            self._record_end(Ended("stopped"), "")
        return Ended("stopped")

    def _next_event(self, timeout: float | None) -> str | None:
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        self._waiting = event == "evaluation"
        return event

    def _permit(self, *, resume: bool = True) -> None:
        if self._waiting:
            self._waiting = False
            self._permits.put(resume)

    def _fit(self) -> None:
        outcome, defect = Ended("finished"), ""
        try:
            self._run.check()
            # The lease of a predecessor on a dead node expires within this time.
            with naming_flags():
                fit(
                    self._spec.config,
                    self._part(),
                    patience=TAKEOVER_SECONDS,
                    fence=self._spec.fence,
                )
        except Interrupted as stop:
            outcome = Ended("stopped", str(stop))
        except HeldError as error:  # records and checkpoints belong to another process
            self._outcome = Ended("failed", str(error))
            self._events.put("ended")
            return
        except SupersededError as error:  # this process must write nothing more
            self._defect = error
            self._events.put("ended")
            return
        except UserError as error:
            reason = str(error) if self._trial else reason_of(error, self._run.path)
            outcome = Ended("diverged" if isinstance(error, Diverged) else "failed", reason)
        except Exception as error:
            defect = traceback.format_exc()
            outcome = Ended("failed", f"{type(error).__name__}: {error}; see error.txt")
        try:
            if defect or self._trial is not None:
                with self._run.lease(TAKEOVER_SECONDS):
                    self._record_end(outcome, defect)
            self._outcome = outcome
            _free_memory()
        except Exception as error:  # the folder cannot be written: Tune retries elsewhere
            self._defect = error
        self._events.put("ended")

    def _part(self) -> Trial | None:
        if self._trial is None or self._shared is None:
            return None
        config = self._spec.config
        if self._spec.trains_in_process:
            _limit_gpu_memory((config.resources_per_worker or {}).get("GPU", 0))
        data = self._shared.data[tokenization_of(config)]
        part = Trial(
            task=self._shared.task,
            data=data,
            tokenizer=_tokenizer(data.model, config.max_length),
            record=self._record(),
            on_evaluation=self._ask,
            stopwatch=self._stopwatch,
        )
        if self._trial.parent is not None:
            with self._run.lease(TAKEOVER_SECONDS):
                inherit(self._run, RunFolder(self._run.path.parent / self._trial.parent))
        self._stopwatch.lap("start_up")  # mostly imports, in the first trial of a process
        return part

    def _record(self) -> dict[str, Any]:
        assert self._trial is not None
        assert self._shared is not None
        return {"sweep": self._shared.sweep, "trial": self._trial.as_dict()}

    def _record_end(self, outcome: Ended, defect: str) -> None:
        if defect:
            write_atomic(self._run.path / "error.txt", defect)
        if self._trial is not None:
            while self._unreported() is not None:
                pass
            self._stopwatch.lap("records")
            self._ended = time.time()
            self._run.add_seconds(self._stopwatch.take())
            self._close(outcome)

    def _close(self, outcome: Ended) -> None:
        claim = self._run.checkpoints / "attempt.json"
        # The claim of an earlier process is older than this one.
        begun = max(claim.stat().st_mtime, self._started) if claim.exists() else self._started
        known = self._run.read()
        until = self._ended or time.time()
        self._run.update(
            status=outcome.status,
            reason=outcome.reason,
            **self._record(),
            started=known.get("started", now()),
            ended=now(),
            trial_score=max(self._reported.values(), default=None),
            trial_evaluations=len(self._reported),
            startup_seconds=round(max(begun - self._started, 0.0), 3),
            loop_seconds=round(max(until - begun - self._waited, 0.0), 3),
        )
        if outcome.status in ENDED and outcome.status != "failed":  # a failed trial is retried
            self._run.store().keep(())

    def _ask(self) -> bool:
        """Wait for the scheduler's decision; return whether to continue.

        The training loop calls this after each evaluation.
        """
        assert self._trial is not None
        self._events.put("evaluation")
        since = time.monotonic()
        resume = self._permits.get()
        self._waited += time.monotonic() - since
        return resume and not self._trial.is_over(len(self._reported))

    def _unreported(self) -> dict[str, Any] | None:
        if self._trial is None or self._shared is None:
            return None
        for step, score in self._shared.scores(self._run).items():
            if step not in self._reported:
                self._reported[step] = score
                return self._report(None)
        return None

    def _report(self, ended: Ended | None) -> dict[str, Any]:
        score = max(self._reported.values(), default=WORST)
        loss = mean_loss(self._run, max(self._reported, default=0))
        return {
            "score": score,
            "standing": score - TIE_BREAK * loss,
            "evaluation": len(self._reported),
            "done": ended is not None,
            "ended": ended,  # None if the scheduler ends the trial, when Tune sets `done`
        }


def build_trainable(shared: Shared | None) -> type[tune.Trainable]:
    """Build the Trainable that Tune runs: a `RunProcess` that trains several runs in succession."""

    class FleetRun(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.process = RunProcess(shared)
            self.process.start(config["spec"])

        def step(self) -> dict[str, Any]:
            return self.process.next_report()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.process.stop()
            self.process.start(new_config["spec"])
            return True

        def cleanup(self) -> None:
            self.process.stop()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002
            return {}  # checkpoints are in the run folder

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Load nothing: `start` reads the run folder."""

    return FleetRun


def mean_loss(run: RunFolder, last_step: int) -> float:
    """Return the mean training loss in metrics.jsonl up to `last_step`; 0 without losses."""
    losses = [
        line["loss"] for line in run.metrics() if "loss" in line and line["step"] <= last_step
    ]
    return sum(losses) / len(losses) if losses else 0.0


def inherit(run: RunFolder, parent: RunFolder) -> None:
    """Link the checkpoints and predictions of `parent` into `run`, so that it resumes from there.

    The checkpoints appear together, after the predictions. A run that already has checkpoints is
    not changed. Only the holder of the lease of `run` may call this.

    Raises:
        UserError: `parent` has no checkpoint.
    """
    source = parent.store()
    if run.store().steps():
        return
    if not source.steps():
        raise UserError(
            f"{run.path.name} continues from {parent.path.name}, which has no checkpoint; use --fresh "
            "to start the sweep anew"
        )
    scratch = run.path / ".inherited"
    shutil.rmtree(scratch, ignore_errors=True)
    for step in source.steps():
        link_tree(source.path(step), scratch / source.path(step).name)
    sync_tree(scratch)
    if parent.predictions.is_dir():
        shutil.rmtree(run.predictions, ignore_errors=True)
        link_tree(parent.predictions, run.predictions)
        sync_tree(run.predictions)
    shutil.rmtree(run.checkpoints, ignore_errors=True)  # at most the claim of an attempt
    scratch.rename(run.checkpoints)
    sync_folder(run.path)


@lru_cache(maxsize=4)
def _tokenizer(model: str, max_length: int) -> Any:
    return build_tokenizer(ModelFlags(model_name_or_path=model, max_length=max_length))


def _limit_gpu_memory(share: float) -> None:
    """Limit this process to `share` of the GPU's memory, if it is between 0 and 1.

    Nothing else keeps trials on one GPU from using each other's memory.
    """
    import torch

    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
