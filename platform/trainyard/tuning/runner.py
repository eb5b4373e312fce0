"""Run trials by Ray Tune: it finds room for them, keeps their processes, and starts lost ones again.

What is run next comes from a function, and what came of it lies in the trials' folders: nothing that
Tune stores itself is needed to go on with a sweep.
"""

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from trainyard.cluster import release_orphans
from trainyard.storage import ENDED, EXPIRY_SECONDS, RunFolder, SweepFolder, TrialSpec, now, record
from trainyard.terminal import StopSignals, say
from trainyard.tuning.clock import Clock
from trainyard.tuning.placement import Placement
from trainyard.tuning.trial import Context, build_trainable, evaluations

Supply = Callable[[], TrialSpec | Literal["later"] | None]
"""The next trial; "later" when it depends on one that is running; None when there are no more."""

RECORD_SECONDS = 5.0

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders hold it all
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints tables to stdout, however quiet it is asked to be
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run_trials(
    folder: SweepFolder,
    context: Context,
    supply: Supply,
    scheduler: Any,
    placement: Placement,
    signals: StopSignals,
    clock: Clock,
    *,
    seconds: float | None = None,
) -> Literal["done", "stopped", "time"]:
    """Run what `supply` gives until there is no more, a signal came, or its search took `seconds`.

    On a signal or at that time running trials save and stop, and nothing new is started.
    """
    ended: Literal["done", "stopped", "time"] = "done"
    limit = math.inf if seconds is None else seconds
    if clock.searching() >= limit:
        return "time"
    running: dict[str, RunFolder] = {}
    stopped: list[RunFolder] = []

    def next_spec() -> TrialSpec | Literal["later"] | None:
        return supply() if ended == "done" else None

    failures: list[BaseException] = []

    def tune() -> None:
        try:
            _tune(folder, context, next_spec, scheduler, placement, running, stopped)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=tune, daemon=True)
    with signals.training():
        thread.start()
        written = time.monotonic()
        while thread.is_alive():
            thread.join(0.3)
            folder.check()
            if time.monotonic() - written > RECORD_SECONDS:
                written = time.monotonic()
                clock.write()
            if folder.stop_request.exists():
                ended = "stopped"
            elif clock.searching() >= limit and ended == "done":
                ended = "time"
                say("the time is up: saving what runs")
            if ended != "done":
                for run in list(running.values()):
                    run.stop_request.touch()
    if failures:
        raise failures[0]
    if context.config.worker_counts != [1]:
        release_orphans(patience=30)
    for run in stopped:
        _settle(run, context)
    return ended


def _tune(
    folder: SweepFolder,
    context: Context,
    supply: Supply,
    scheduler: Any,
    placement: Placement,
    running: dict[str, RunFolder],
    stopped: list[RunFolder],
) -> None:
    from ray import tune
    from ray.tune.search import Searcher

    class Suggested(Searcher):
        """Tune's view of `supply`."""

        def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
            spec = supply()
            if spec is None:
                return Searcher.FINISHED
            return None if spec == "later" else {"spec": spec.as_dict()}

        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            """Nothing to learn here: what is known is read from the folders."""

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("")

        def restore(self, checkpoint_path: str) -> None:
            """Never called: a sweep goes on from its folders."""

    class Watch(tune.Callback):
        """Who runs, for stopping them; a line for each that ended; what a lost one left behind."""

        def on_trial_start(self, *, trial: Any, **_: Any) -> None:
            running[trial.trial_id] = folder_of(trial)

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            running.pop(trial.trial_id, None)
            # One that ended by itself, also one that was asked to save, has said so in its folder; those
            # that the scheduler stops are told to end after this.
            by_itself = trial.last_result.get("by_itself") or record(folder_of(trial)).ended
            if not by_itself:
                stopped.append(folder_of(trial))
            _say_ended(folder_of(trial), None if by_itself else "stopped by the scheduler")

        def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
            release_orphans()
            say(f"{trial.config['spec']['name']}: its process was lost; starting it again")

        def on_trial_error(self, *, trial: Any, **_: Any) -> None:
            release_orphans()
            running.pop(trial.trial_id, None)
            run = folder_of(trial)
            _mark_lost(run, context.config.max_failures)
            _say_ended(run)

    def folder_of(trial: Any) -> RunFolder:
        return context.run(TrialSpec(**trial.config["spec"]))

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    scratch = folder.path / ".tune"
    try:
        if not context.config.verbose:
            logger.setLevel(logging.CRITICAL)
        tune.Tuner(
            tune.with_resources(
                build_trainable(context),
                tune.PlacementGroupFactory(
                    [dict(placement.per_trial)], bundle_label_selector=[dict(placement.labels)]
                ),
            ),
            tune_config=tune.TuneConfig(
                metric="standing",
                mode="max",
                search_alg=Suggested(),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=placement.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[Watch()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=context.config.max_failures),
            ),
        ).fit()
    finally:
        logger.setLevel(level)
        shutil.rmtree(scratch, ignore_errors=True)


def _mark_lost(run: RunFolder, restarts: int) -> None:
    trial = record(run)
    if trial.status not in ENDED:
        trial.run.update(
            status="failed",
            reason=f"its process was lost more than {restarts} time(s) (--max-failures)",
            trial=trial.spec.as_dict(),
            ended=now(),
        )


def _settle(run: RunFolder, context: Context) -> None:
    """Close the record of a trial that was stopped and killed before it could do so.

    Tune gives the last processes of a sweep ten seconds to end, and a Ray Train run may need more. The
    lease that such a one leaves is taken over, and with it the certainty that it writes no more.
    """
    if record(run).ended:
        return
    with run.lease(patience=2 * EXPIRY_SECONDS):
        trial = record(run)
        if not trial.ended:
            scores = evaluations(trial.run, context)
            trial.run.update(
                status="pruned",
                reason=f"stopped by the scheduler at evaluation {len(scores)}",
                ended=now(),
                trial_score=max(scores.values(), default=None),
                trial_evaluations=len(scores),
            )
        trial.run.stop_request.unlink(missing_ok=True)


def _say_ended(run: RunFolder, status: str | None = None) -> None:
    trial = record(run)
    score = "" if trial.score is None else f" with {trial.score:.4f}"
    tried = ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in trial.spec.hyperparameters.items()
    )
    say(f"{trial.spec.name}: {status or trial.status}{score} ({tried})")
