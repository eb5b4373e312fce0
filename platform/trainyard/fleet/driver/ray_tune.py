"""Ray Tune's side of a fleet: its tuner, and the classes that it calls. Imports Ray."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

from trainyard.cluster import release_orphans
from trainyard.fleet.actor import build_trainable
from trainyard.fleet.spec import Ended, RunSpec
from trainyard.terminal import quieted, say

if TYPE_CHECKING:
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler

    from trainyard.fleet.driver.runner import Fleet, Supply

SUPERVISOR = {"node:__internal_head__": 0.001}
"""Resources of a process whose run has workers in other processes. It takes no CPU: a cluster full of
supervisors would have no room for a worker. Ray refuses to reserve nothing, and every cluster has
this. Ray Train reserves all workers of a run in one placement group, so that runs wait for room and
never hold half of it."""

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders hold it all
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints tables to stdout at any verbosity
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run_tuner(
    fleet: "Fleet",
    supply: "Supply",
    on_end: Callable[[RunSpec, Ended], None],
    scheduler: "TrialScheduler | None",
) -> None:
    """Run the runs of `supply` by Tune; returns after the last one."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    scratches = fleet.folder.path / ".tune"
    # One a lease: a driver that lost its own may still write there, and deletes only that.
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
        with suppress(OSError):  # it holds that of a successor
            scratches.rmdir()


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    spec: RunSpec = config["spec"]
    if not spec.trains_in_process:
        return tune.PlacementGroupFactory([SUPERVISOR])
    return tune.PlacementGroupFactory(
        [dict(spec.config.resources_per_worker or {"CPU": 1.0})],
        bundle_label_selector=[dict(spec.config.label_selector or {})],
    )


class _Suggested(Searcher):
    """Searcher of Tune that proposes the runs of a supply."""

    def __init__(self, supply: "Supply") -> None:
        super().__init__()
        self._supply = supply

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        spec = self._supply()
        if spec is None:
            return Searcher.FINISHED
        return None if spec == "later" else {"spec": spec}

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Learn nothing: the supply reads the folders."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a fleet resumes from its folders."""


class _TuneCallback(tune.Callback):
    """Record starts and ends of runs in the fleet, and clean up after lost processes."""

    def __init__(self, fleet: "Fleet", on_end: Callable[[RunSpec, Ended], None]) -> None:
        self._fleet, self._on_end = fleet, on_end

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune stores its callbacks; leases and bars of progress cannot be stored."""
        return {}

    def on_trial_start(self, *, trial: "Trial", **_: Any) -> None:
        self._fleet.start(trial.trial_id, trial.config["spec"])

    def on_trial_complete(self, *, trial: "Trial", **_: Any) -> None:
        spec: RunSpec = trial.config["spec"]
        ended = self._fleet.complete(trial.trial_id, spec, trial.last_result.get("ended"))
        self._on_end(spec, ended)

    def on_trial_recover(self, *, trial: "Trial", **_: Any) -> None:
        release_orphans()
        say(f"{trial.config['spec']}: its process was lost; starting it again")

    def on_trial_error(self, *, trial: "Trial", **_: Any) -> None:
        release_orphans()
        spec: RunSpec = trial.config["spec"]
        self._on_end(spec, self._fleet.lose(trial.trial_id, spec))
