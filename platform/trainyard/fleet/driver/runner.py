"""Run a fleet on Ray Tune, which places runs, reuses processes, and restarts lost processes.

A function supplies the next run, and the run folders hold the outcomes. So a fleet resumes without
any state of Tune.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainyard.cluster import check_local_ray, memory_death, memory_remedy, release_orphans
from trainyard.errors import HeldError, UserError
from trainyard.fleet.spec import TAKEOVER_SECONDS, VERDICT, Ended, RunSpec, Shared, pruned
from trainyard.signals import StopSignals
from trainyard.storage import ENDED, JobFolder, Lease, now

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

Supply = Callable[[], RunSpec | Literal["later"] | None]
"""Function that returns the next run, "later" if it awaits a running one, None after the last."""

POLL_SECONDS = 0.3
PATIENCE = 30.0
"""Maximum seconds to wait until controllers of Ray Train have removed their placement groups."""


@dataclass(kw_only=True)
class Fleet:
    """Runs of a sweep or suite, several of which train at the same time on Ray Tune."""

    folder: JobFolder
    """Folder of the sweep or suite."""
    lease: Lease
    """Lease of the job; polled while runs train."""
    concurrent: int
    """Maximum number of runs at the same time."""
    restarts: int
    """Maximum number of restarts of a run whose process was lost (--max-failures)."""
    signals: StopSignals
    shared: Shared | None = None
    """Data and task of the trials of a sweep; None for ordinary runs."""
    verbose: bool = False
    running: dict[str, RunSpec] = field(default_factory=dict, init=False)
    """Runs in training, by Tune's trial id."""
    _unsettled: list[tuple[RunSpec, Ended | None]] = field(default_factory=list, init=False)
    _supervised: bool = field(default=False, init=False)

    def run(
        self,
        supply: Supply,
        stop: Callable[[], bool],
        on_end: Callable[[RunSpec, Ended], None],
        scheduler: "TrialScheduler | None" = None,
    ) -> None:
        """Train the runs of `supply` until the last one has ended or a stop is requested.

        Args:
            supply: Source of the next run.
            stop: Function that is polled. When it returns True, or the job's folder has a stop
                request, running runs save and end, and no other run starts.
            on_end: Function that is called with each ended run and its outcome.
            scheduler: Scheduler of Tune; None for no early stopping.

        Raises:
            SupersededError: Another driver has taken over the job.
            HeldError: A process of an ended run still holds the run's lease.
            UserError: The local Ray has ended.
        """
        self._unsettled.clear()
        stopping = False
        failures: list[BaseException] = []

        def next_spec() -> RunSpec | Literal["later"] | None:
            return None if stopping else supply()

        def work() -> None:
            try:
                from trainyard.fleet.driver.ray_tune import (
                    run_tuner,  # imports Ray, after it was started
                )

                run_tuner(self, next_spec, on_end, scheduler)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work, daemon=True)
        with self.signals.training():
            thread.start()
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                self.lease.poll()
                check_local_ray()
                stopping = stop() or self.folder.stop_is_requested() or stopping
                for spec in list(self.running.values()) if stopping else ():
                    if spec.folder.path.is_dir():
                        spec.folder.stop_request.touch()
        if failures:
            raise failures[0]
        if self._supervised:
            release_orphans(PATIENCE)
        for spec, ended in self._unsettled:
            self.settle(spec, ended, patience=TAKEOVER_SECONDS)

    def start(self, trial_id: str, spec: RunSpec) -> None:
        self.running[trial_id] = spec
        self._supervised |= not spec.trains_in_process

    def complete(self, trial_id: str, spec: RunSpec, ended: Ended | None) -> Ended:
        """Return the outcome of a run; write VERDICT if the scheduler stopped it.

        Args:
            trial_id: Tune's id of the run.
            spec: The run.
            ended: Outcome that the actor reported; None if the scheduler stopped the run.
        """
        self.running.pop(trial_id, None)
        if ended is not None:
            return ended
        if (known := _ended(spec)) is not None:  # the run ended before the decision
            return known
        (spec.folder.path / VERDICT).touch()
        self._unsettled.append((spec, None))
        return Ended("pruned")

    def lose(self, trial_id: str, spec: RunSpec, error: str = "") -> Ended:
        """Record that a run's process was lost too often, and return the run's outcome.

        If the run's lease is still held, `run` records the outcome after the last run.

        Args:
            trial_id: Tune's id of the run.
            spec: The run.
            error: Text of Ray's error at the last loss.
        """
        self.running.pop(trial_id, None)
        reason = f"its process was lost more than {self.restarts} time(s) (--max-failures)"
        if death := memory_death(error):
            reason += f"; the last one {death}; {memory_remedy()}"
        ended = Ended("failed", reason)
        try:
            return self.settle(spec, ended)
        except HeldError:  # processes of a lost node may still live
            self._unsettled.append((spec, ended))
            return ended
        except UserError as error:  # the run's folder is unusable
            return Ended("failed", str(error))

    def settle(self, spec: RunSpec, ended: Ended | None, patience: float = 0.0) -> Ended:
        """Record the outcome of a run that was lost or killed before recording one.

        Taking over the run's lease keeps remaining processes of the run from writing. Tune kills
        its last processes after ten seconds, which may be too early for a run with Ray Train
        workers.

        Args:
            spec: The run.
            ended: Outcome, unless the record has one; None for a trial that the scheduler stopped.
            patience: Seconds to wait for the run's lease.

        Returns:
            The recorded outcome.

        Raises:
            HeldError: A process still holds the lease after `patience` seconds.
            UserError: The run's folder cannot be read or written.
        """
        run = spec.folder
        with run.lease(patience):
            known = _ended(spec) or self._record(spec, ended)
            (run.path / VERDICT).unlink(missing_ok=True)
            return known

    def _record(self, spec: RunSpec, ended: Ended | None) -> Ended:
        run = spec.folder
        trial: dict[str, Any] = {}
        if self.shared is not None and spec.trial is not None:
            scores = self.shared.scores(run)
            trial = {
                "trial": spec.trial.as_dict(),
                "trial_score": max(scores.values(), default=None),
                "trial_evaluations": len(scores),
            }
        ended = ended or pruned(trial.get("trial_evaluations", 0))
        run.update(status=ended.status, reason=ended.reason, ended=now(), **trial)
        if ended.status == "pruned":
            run.store().keep(())
        return ended


def _ended(spec: RunSpec) -> Ended | None:
    known = spec.folder.read()
    return Ended(status, known.get("reason")) if (status := known.get("status")) in ENDED else None
