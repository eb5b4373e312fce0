"""Tuner of a fleet, and the classes that Ray Tune calls. Importing this module imports Ray."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.search import Searcher

from trainyard.cluster import memory_death, release_orphans
from trainyard.fleet.actor import build_trainable
from trainyard.fleet.spec import Ended, RunSpec
from trainyard.terminal import quieted, say

if TYPE_CHECKING:
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler

    from trainyard.fleet.driver.runner import Fleet, Supply

SUPERVISOR = {"node:__internal_head__": 0.001}
"""Resources of an actor whose run trains in Ray Train workers.

The actor reserves no CPU, since a cluster full of such actors would have no room for workers. Ray
requires a nonempty reservation, and every head node has this resource. Ray Train reserves all
workers of a run in one placement group. So a run waits until all of its workers fit.
"""

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run folders hold the logs
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables at any verbosity
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run_tuner(
    fleet: "Fleet",
    supply: "Supply",
    on_end: Callable[[RunSpec, Ended], None],
    scheduler: "TrialScheduler | None",
) -> None:
    """Train the runs of `supply` with Ray Tune; return when the last run has ended.

    Args:
        fleet: Settings of the job, and its running runs.
        supply: Source of the next run.
        on_end: Function that is called with each ended run and its outcome.
        scheduler: Scheduler of Tune; None for no early stopping.

    Raises:
        SupersededError: Another driver has taken over the job.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    scratches = fleet.folder.path / ".tune"
    # One folder per lease: a driver that lost its lease may still write to and delete its folder.
    fleet.lease.check()
    shutil.rmtree(scratches, ignore_errors=True)
    scratch = scratches / fleet.lease.id
    quiet = nullcontext() if fleet.verbose else quieted("ray.tune", logging.CRITICAL)
    try:
        tuner = tune.Tuner(
            tune.with_resources(build_trainable(fleet.shared), _resources),
            tune_config=tune.TuneConfig(
                metric="standing",
                mode="max",
                search_alg=_Suggested(supply),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=fleet.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[_TuneCallback(fleet, on_end)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=fleet.restarts),
            ),
        )
        with quiet:
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # not empty: a successor has its folder there
            scratches.rmdir()


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    spec: RunSpec = config["spec"]
    if not spec.trains_in_process:
        return tune.PlacementGroupFactory([SUPERVISOR])
    return tune.PlacementGroupFactory(
        [dict(spec.config.resources_per_worker or {"CPU": 1.0})],
        bundle_label_selector=[dict(spec.config.label_selector or {})],
    )


class _ActorManager(RayActorManager):
    """Tune's actors; one that Ray ended for lack of memory counts as lost, like any dead actor.

    Ray raises an OutOfMemoryError for it. Tune does not know that error: it would end the fleet.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


tune_controller.RayActorManager = _ActorManager


class _Suggested(Searcher):
    """Searcher for Tune that suggests the runs of a supply."""

    def __init__(self, supply: "Supply") -> None:
        super().__init__()
        self._supply = supply

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        spec = self._supply()
        if spec is None:
            return Searcher.FINISHED
        return None if spec == "later" else {"spec": spec}

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Do nothing: the supply reads the run folders."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a fleet resumes from its run folders."""


class _TuneCallback(tune.Callback):
    """Callback of Tune: record starts and ends of runs, and clean up after lost processes."""

    def __init__(self, fleet: "Fleet", on_end: Callable[[RunSpec, Ended], None]) -> None:
        self._fleet, self._on_end = fleet, on_end

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles callbacks, but leases cannot be pickled."""
        return {}

    def on_trial_start(self, *, trial: "Trial", **_: Any) -> None:
        self._fleet.start(trial.trial_id, trial.config["spec"])

    def on_trial_complete(self, *, trial: "Trial", **_: Any) -> None:
        spec: RunSpec = trial.config["spec"]
        ended = self._fleet.complete(trial.trial_id, spec, trial.last_result.get("ended"))
        self._on_end(spec, ended)

    def on_trial_recover(self, *, trial: "Trial", **_: Any) -> None:
        release_orphans()
        death = memory_death(_last_error(trial)) or "was lost"
        say(f"{trial.config['spec']}: its process {death}; starting it again")

    def on_trial_error(self, *, trial: "Trial", **_: Any) -> None:
        release_orphans()
        spec: RunSpec = trial.config["spec"]
        self._on_end(spec, self._fleet.lose(trial.trial_id, spec, _last_error(trial)))


def _last_error(trial: "Trial") -> str:
    """Return the text of the error by which a trial's process was lost; "" if Tune stored none."""
    if trial.error_file is None:
        return ""
    return Path(trial.error_file).read_text().rpartition("Failure # ")[2]
