"""`tune`: a sweep from its flags to its verdict."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from trainyard.batch_plan import PLAN_VERSION
from trainyard.cluster import (
    TOKENIZERS,
    Node,
    grows_by_itself,
    nodes_within_reach,
    ray_session,
    share_out,
)
from trainyard.config import check_packages, python_function
from trainyard.doctor import preflight
from trainyard.errors import Interrupted, UserError
from trainyard.fleet import Fleet
from trainyard.metrics import get_metric
from trainyard.signals import StopSignals
from trainyard.storage import (
    SweepFolder,
    TrialRecord,
    now,
    outages_logged,
    storage_folder,
    versions,
)
from trainyard.terminal import say, stage
from trainyard.training import (
    NUMERICS_VERSION,
    computed_otherwise,
    planned_otherwise,
    push_model,
)
from trainyard.tuning.conclude import SweepResult, conclude
from trainyard.tuning.config import BUDGET_FIELDS, SweepConfig
from trainyard.tuning.confirm import (
    candidates_of,
    confirmation_supply,
    rank_on_searched_rows,
    verdict_of,
)
from trainyard.tuning.honesty import CONFIRMATION_SHARE
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.searchers import SEARCHERS, rank
from trainyard.tuning.space import build_space
from trainyard.tuning.trials import (
    Context,
    bar_of_runs,
    find_data,
    prepare_all,
    search_supply,
    tokenizations,
)

RECORD_SECONDS = 5.0
"""Minimum seconds between two updates of the time in sweep.json."""


@python_function()
def tune(config: SweepConfig) -> SweepResult:
    """Run the sweep of `config`, or resume the same sweep where it was interrupted.

    A finished sweep is not repeated: its stored result is returned.

    Raises:
        SupersededError: Another driver has taken over the sweep.
        HeldError: Another driver holds the sweep.
        UserError: The flags, data, model or cluster cannot be used; completed work is kept.
        Interrupted: SIGTERM or Ctrl-C stopped the sweep; running trials are saved.
    """
    result = _tune(config)
    if config.push_to_hub:
        push_model(result.model, config.push_to_hub)
    return result


def _tune(config: SweepConfig) -> SweepResult:
    check_packages(config)
    metric = config.metric_for_best_model
    if metric and not get_metric(metric).higher_is_better:
        raise UserError(
            f"--metric-for-best-model {metric} is lower for better models, and a sweep compares by metrics "
            "that are higher; choose another one here, and report it by --metrics"
        )
    space = build_space(config.space, config.overrides, config.base)
    SEARCHERS[config.searcher].check(config.searcher, space, config.num_trials)
    scheduler = SCHEDULERS[config.scheduler]
    scheduler.check_space(config, space)
    budget = scheduler.budget(config, space)
    folder = SweepFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    with folder.lease() as lease, StopSignals(folder.stop_request) as signals:
        if config.fresh or not folder.read():
            config.check_new()
        if config.fresh:
            folder.clear()
        known = folder.read()
        config = config.as_begun(known["config"] if known else None)
        _check_same_sweep(config, known)
        if (result := _finished(config, folder, known)) is not None:
            say(f"sweep {folder.path.name} is finished; more --num-trials extends it")
            return result
        folder.check_records()  # find damage before anything is started
        clock = Clock(folder, known)
        requested, config = config, replace(config, test_share=rows_set_aside(config, known))
        stage("reading the data")
        tokenized = tokenizations(config, space)
        splits = find_data(tokenized)
        task = splits.task
        stage("starting Ray")
        with ray_session(config, TOKENIZERS):
            preflight(config)
            per_worker, concurrent = trial_capacity(config, budget, nodes_within_reach(config))
            data = prepare_all(splits, tokenized, folder)
            prints = {str(key): found.fingerprint for key, found in data.items()}
            models = {
                str(key): found.base_digests["base_model_digest"] for key, found in data.items()
            }
            for found in data.values():
                if (reason := computed_otherwise(known, found.model)) is not None:
                    raise UserError(
                        f"sweep '{folder.path.name}' was started with another {reason}; choose another "
                        "--run-name, or --fresh to start it anew"
                    )
            before, before_models = (
                known.get(name, {}) for name in ("data_fingerprint", "base_model_digest")
            )
            for changed, known_digests, digests in (
                ("base weights", before_models, models),
                ("data or tokenizer", before, prints),
            ):
                if any(known_digests.get(key, found) != found for key, found in digests.items()):
                    raise UserError(
                        f"the {changed} of sweep '{folder.path.name}' changed since it was started; "
                        "choose another --run-name, or --fresh to start it anew"
                    )
            context = Context(
                sweep=folder.path.name,
                config=config,
                task=task,
                data=data,
                per_worker=per_worker,
                folders={"search": folder.trials, "confirmation": folder.confirmation},
                fence=folder.fence,
            )
            fleet = Fleet(
                folder=folder,
                lease=lease,
                concurrent=concurrent,
                restarts=config.max_failures,
                signals=signals,
                shared=context.shared,
                verbose=config.verbose,
            )
            folder.update(
                kind="sweep",
                name=folder.path.name,
                status="running",
                reason=None,
                identity=requested.identity(),
                plan_version=PLAN_VERSION,
                numerics_version=known.get("numerics_version", 1 if known else NUMERICS_VERSION),
                config=asdict(requested),
                test_share=config.test_share,
                space={field: str(domain) for field, domain in space.items()},
                searcher=config.searcher,
                scheduler=config.scheduler,
                task=task.name,
                data_name=config.data_name,
                metric=task.score,
                num_trials=budget,
                started=known.get("started") or now(),
                data_fingerprint={**before, **prints},
                base_model_digest={**before_models, **models},
                versions=versions(),
                resources_per_trial=dict(per_worker),
                warnings=list(next(iter(data.values())).warnings),
                max_concurrent_trials=concurrent,
            )
            say(
                f"sweep {folder.path.name}: {budget} trials, {concurrent} at once, "
                f"{config.searcher} search of {', '.join(f'{k} {v}' for k, v in space.items())}"
            )
            try:
                if not clock.expired(config.max_seconds):
                    with bar_of_runs(folder.path.name, budget) as ended:
                        fleet.run(
                            search_supply(context, space, folder),
                            lambda: clock.tick(config.max_seconds),
                            ended,
                            scheduler.tune_scheduler(config),
                        )
                clock.end_search()
                _check_not_stopped(folder, signals)
                ranked = rank(folder.records())
                _check_any_finished(folder, ranked)
                best = rank_on_searched_rows(context, ranked)
                default = {field: getattr(config, field) for field in space}
                candidates = candidates_of(config, best, default)
                confirmation, unconfirmed = None, ""
                if config.confirm_seeds and candidates:
                    supply = confirmation_supply(context, folder, candidates, default)
                    runs = (len(candidates) + 1) * config.confirm_seeds
                    with bar_of_runs("confirmation", runs) as ended:
                        fleet.run(supply, clock.tick, ended)
                    _check_not_stopped(folder, signals)
                    confirmation, unconfirmed = verdict_of(folder, context, candidates, default)
                elif config.confirm_seeds:
                    unconfirmed = "no trial finished that differs from the default recipe"
                return conclude(
                    folder, task, space, ranked, confirmation, unconfirmed, clock.total()
                )
            finally:
                clock.write()


def rows_set_aside(config: SweepConfig, known: Mapping[str, Any]) -> float:
    """Return the share of the evaluation rows that the search must not see, for the confirmation.

    --test-share or --test-file decide it. Otherwise a resumed sweep keeps its recorded share, or 0
    if its record has none.

    Args:
        config: Flags of the sweep.
        known: Content of sweep.json; empty for a new sweep.
    """
    if config.test_share or config.test_file:
        return config.test_share
    if known:
        return float(known.get("test_share", 0.0))
    return CONFIRMATION_SHARE if config.confirm_seeds else 0.0


def trial_capacity(config: SweepConfig, trials: int, nodes: Sequence[Node]) -> tuple[Node, int]:
    """Size the workers of a search, and the number of trials at the same time.

    Args:
        config: Flags of the sweep.
        trials: Number of trials.
        nodes: Resources of each node, also of those that an autoscaler may add.

    Returns:
        Resources of a worker, and the maximum number of trials at the same time.

    Raises:
        UserError: The workers of one trial do not fit, and no KubeRay autoscaler could add nodes.
    """
    (workers,) = config.worker_counts
    needed, room = share_out(
        config,
        nodes,
        title=f"trials of --num-workers {workers}",
        groups=trials,
        size=workers,
        least=workers,
        growing=grows_by_itself(),
    )
    return needed, max(min(room // workers, config.max_concurrent_trials or room), 1)


class Clock:
    """Clock of a sweep over all attempts: seconds in total, and of the search.

    --max-seconds limits the search. Times are stored while the sweep runs, so time before a kill
    counts.
    """

    def __init__(self, folder: SweepFolder, known: Mapping[str, Any]) -> None:
        self._folder, self._started = folder, time.time()
        self._before = float(known.get("seconds", 0.0))
        self._searched = float(known.get("search_seconds", self._before))
        self._search_ended: float | None = None
        self._written = time.monotonic()
        self._said = False

    def total(self) -> float:
        return self._before + time.time() - self._started

    def searching(self) -> float:
        """Return the seconds of the search, including the start-up of each attempt."""
        return self._searched + (self._search_ended or time.time()) - self._started

    def end_search(self) -> None:
        """Stop counting the seconds of the search, before the confirmation starts."""
        self._search_ended = time.time()

    def expired(self, limit: float | None) -> bool:
        return self.searching() >= (math.inf if limit is None else limit)

    def tick(self, limit: float | None = None) -> bool:
        """Store the times every RECORD_SECONDS; return True after `limit` seconds of search."""
        if time.monotonic() - self._written > RECORD_SECONDS:
            self._written = time.monotonic()
            with outages_logged():
                self.write()
        expired = self.expired(limit)
        if expired and not self._said:
            self._said = True
            say("time is up: saving running trials")
        return expired

    def write(self) -> None:
        self._folder.update(
            seconds=round(self.total(), 2), search_seconds=round(self.searching(), 2)
        )


def _check_same_sweep(config: SweepConfig, known: Mapping[str, Any]) -> None:
    if not known or known.get("identity") == config.identity():
        return
    another = f"sweep '{config.resolved_run_name}' was started with another"
    remedy = "choose another --run-name, or --fresh to start it anew"
    if (reason := planned_otherwise(known)) is not None:
        raise UserError(f"{another} {reason}; {remedy}")
    changed = config.changed_since(known.get("config", {}))
    raise UserError(f"{another} config ({', '.join(changed)}); {remedy}")


def _finished(
    config: SweepConfig, folder: SweepFolder, known: Mapping[str, Any]
) -> SweepResult | None:
    if known.get("status") != "finished":
        return None
    if any(known["config"][name] != getattr(config, name) for name in BUDGET_FIELDS):
        return None
    here = {"model": str(folder.model), "best_config": str(folder.best_config)}
    return SweepResult(**{**known["result"], **here})


def _check_not_stopped(folder: SweepFolder, signals: StopSignals) -> None:
    if folder.stop_is_requested():
        folder.update(status="stopped")
        raise Interrupted(
            f"sweep {folder.path.name} is saved; the same command resumes it", signals.exit_status
        )


def _check_any_finished(folder: SweepFolder, ranked: Sequence[TrialRecord]) -> None:
    if any(trial.status == "finished" and trial.score is not None for trial in ranked):
        return
    known = [trial.run.read().get("reason") for trial in ranked]
    reasons = [reason for reason in known if reason]
    reason = f"no trial finished ({reasons[0] if reasons else 'there was no time for one'})"
    folder.update(status="failed", reason=reason, ended=now())
    raise UserError(
        f"sweep {folder.path.name}: {reason}; give it more --max-seconds, or other values"
    )
