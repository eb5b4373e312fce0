"""Run a fleet on Ray Tune: it finds room for runs, keeps their processes, and restarts lost ones.

The next run comes from a function, and the outcomes lie in the run folders: nothing that Tune stores
is needed to resume.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainyard.cluster import release_orphans
from trainyard.errors import HeldError, UserError
from trainyard.fleet.spec import TAKEOVER_SECONDS, Ended, RunSpec, Shared, pruned
from trainyard.signals import StopSignals
from trainyard.storage import ENDED, JobFolder, Lease, now

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

Supply = Callable[[], RunSpec | Literal["later"] | None]
"""Returns the next run; "later" when it waits for one that is running; None when there are no more."""

POLL_SECONDS = 0.3
PATIENCE = 30.0
"""Seconds that the controllers of Ray Train may take to remove their placement groups."""


@dataclass(kw_only=True)
class Fleet:
    """Runs at the same time on Ray Tune."""

    folder: JobFolder
    """Folder of the sweep or suite."""
    lease: Lease
    """The job's own; polled while runs train."""
    concurrent: int
    """Maximum number of runs at the same time."""
    restarts: int
    """Restarts of a run whose process was lost (--max-failures)."""
    signals: StopSignals
    shared: Shared | None = None
    """Data of trials; None for ordinary runs."""
    verbose: bool = False
    running: dict[str, RunSpec] = field(default_factory=dict, init=False)
    """Runs that train now, by Tune's id."""
    _unsettled: list[tuple[RunSpec, Ended | None]] = field(default_factory=list, init=False)
    _supervised: bool = field(default=False, init=False)

    def run(
        self,
        supply: Supply,
        stop: Callable[[], bool],
        on_end: Callable[[RunSpec, Ended], None],
        scheduler: "TrialScheduler | None" = None,
    ) -> None:
        """Run the runs of `supply` to the last one, or until a stop is requested.

        `stop` is polled. When it returns True, or the job's folder has a stop request, running runs
        save and end, and no other run starts.
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
        """Record the end of a run; without an outcome the scheduler stopped it."""
        self.running.pop(trial_id, None)
        if ended is not None:
            return ended
        if (known := _ended(spec)) is not None:  # it ended before the decision reached it
            return known
        self._unsettled.append((spec, None))
        return Ended("pruned")

    def lose(self, trial_id: str, spec: RunSpec) -> Ended:
        """Close the record of a run whose process was lost too often."""
        self.running.pop(trial_id, None)
        ended = Ended(
            "failed", f"its process was lost more than {self.restarts} time(s) (--max-failures)"
        )
        try:
            return self.settle(spec, ended)
        except HeldError:  # the processes of a lost node may live for a while
            self._unsettled.append((spec, ended))
            return ended
        except UserError as error:  # its folder is what is wrong
            return Ended("failed", str(error))

    def settle(self, spec: RunSpec, ended: Ended | None, patience: float = 0.0) -> Ended:
        """Close the record of a run that was lost or killed before it could do so.

        Its lease is taken over, after which its processes write nothing more. Tune gives the last
        processes ten seconds to end, and a Ray Train run may need more.

        Args:
            spec: The run.
            ended: Its outcome, unless its record has one; None for a trial that the scheduler stopped.
            patience: Seconds to wait for its lease.

        Raises:
            HeldError: a process still holds the lease.
        """
        run = spec.folder
        with run.lease(patience):
            if (known := _ended(spec)) is not None:
                return known
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
            return ended


def _ended(spec: RunSpec) -> Ended | None:
    known = spec.folder.read()
    return Ended(status, known.get("reason")) if (status := known.get("status")) in ENDED else None
