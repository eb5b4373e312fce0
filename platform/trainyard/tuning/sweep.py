"""`tune`: a sweep from flags to verdict. Read it top to bottom."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainyard.cluster import ray_session
from trainyard.config import PLACE_FIELDS
from trainyard.doctor import preflight
from trainyard.errors import Interrupted, UserError
from trainyard.progress import StopSignals, say
from trainyard.runs import Lease, RunFolder, storage_folder
from trainyard.strategies import check_strategy
from trainyard.tasks import Task
from trainyard.tuning import outputs
from trainyard.tuning.config import BUDGET_FIELDS, SweepConfig
from trainyard.tuning.confirm import (
    DEFAULT,
    candidates_of,
    run_confirmation,
    run_name,
    verdict_of,
)  # fmt: skip
from trainyard.tuning.folder import SweepFolder, TrialRecord, now
from trainyard.tuning.placement import place
from trainyard.tuning.population import check_population
from trainyard.tuning.runner import run_trials
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.search import check_searcher, rank
from trainyard.tuning.space import Space, build_space
from trainyard.tuning.supply import budget_of, prepare_all, search_supply
from trainyard.tuning.trial import Context
from trainyard.versions import versions


@dataclass(frozen=True)
class SweepResult:
    """What a finished sweep found.

    `score` is the winner's, corrected for having been picked where it was confirmed; `verdict`
    compares it with the default recipe, and is None without confirmation.
    """

    run: str
    task: str
    score: float
    interval: list[float] | None
    verdict: str | None
    best_trial: str
    best_hyperparameters: Mapping[str, Any]
    best_config: str
    model: str
    metrics: Mapping[str, Mapping[str, float]]
    trials: Mapping[str, int]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The last line that the job prints."""
        return {"job": "tune", **asdict(self)}


def tune(config: SweepConfig) -> SweepResult:
    """Search, confirm and report as `config` says, or go on where the same sweep was interrupted.

    Raises:
        UserError: for anything the user can mend; what was done so far is kept.
        Interrupted: after SIGTERM or Ctrl-C, when the running trials are saved.
    """
    started = time.time()
    check_strategy(config)
    space = build_space(config.space, config.overrides, config.base)
    check_searcher(config.searcher, space, config.num_trials)
    if config.scheduler == "pbt":
        check_population(config, space)
    budget = budget_of(config, space)
    folder = SweepFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    RunFolder(folder.path).create()
    with Lease(folder.path), StopSignals(folder.stop_request) as signals:
        if config.fresh:
            RunFolder(folder.path).clear()
        known = folder.read()
        _check_same_sweep(config, known)
        if (result := _finished(config, folder, known)) is not None:
            say(f"sweep {folder.path.name} is finished; more --num-trials or --fresh goes on")
            return result
        folder.records()  # a damaged folder is known before anything is started
        spent = float(known.get("seconds", 0.0))
        with ray_session(config):
            import ray

            preflight(config, folder.path.parent)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            placement = place(config, budget, nodes)
            task, data = prepare_all(config, space, folder)
            prints = {str(key): found.fingerprint for key, found in data.items()}
            if known and known["data_fingerprint"] != prints:
                raise UserError(
                    f"the data of sweep '{folder.path.name}' has changed since it was started; choose "
                    "another --run-name, or --fresh to start it anew"
                )
            context = Context(
                sweep=folder.path.name,
                config=config,
                task=task,
                data=data,
                per_worker=placement.per_worker,
                folders={"search": folder.trials, "confirmation": folder.confirmation},
            )
            folder.update(
                kind="sweep",
                name=folder.path.name,
                status="running",
                identity=config.identity(),
                config=asdict(config),
                space={field: str(domain) for field, domain in space.items()},
                searcher=config.searcher,
                scheduler=config.scheduler,
                task=task.name,
                metric=task.score,
                num_trials=budget,
                started=known.get("started") or now(),
                data_fingerprint=prints,
                versions=versions(),
                resources_per_trial=dict(placement.per_worker),
                max_concurrent_trials=placement.concurrent,
            )
            say(
                f"sweep {folder.path.name}: {budget} trials, {placement.concurrent} at once, "
                f"{config.searcher} search of {', '.join(f'{k} {v}' for k, v in space.items())}"
            )
            try:
                ended = run_trials(
                    folder,
                    context,
                    search_supply(config, space, folder, data, budget),
                    SCHEDULERS[config.scheduler](config),
                    placement,
                    signals,
                    spent=lambda: spent + time.time() - started,
                    seconds=config.max_seconds,
                )
                if ended == "stopped":
                    raise _interrupted(folder, signals)
                ranked = rank(folder.records())
                _check_any_finished(folder, ranked)
                default = {field: getattr(config, field) for field in space}
                candidates = candidates_of(config, ranked, default)
                confirmation = None
                if config.confirm_seeds and candidates:
                    if not run_confirmation(
                        folder, context, candidates, default, placement, signals
                    ):
                        raise _interrupted(folder, signals)
                    confirmation = verdict_of(folder, context, candidates, default)
                return _conclude(
                    folder, task, space, ranked, confirmation, spent + time.time() - started
                )
            finally:
                folder.update(seconds=round(spent + time.time() - started, 2))


def _check_same_sweep(config: SweepConfig, known: Mapping[str, Any]) -> None:
    if not known or known.get("identity") == config.identity():
        return
    before = known.get("config", {})
    changed = [
        f"{name} {before.get(name)} -> {value}"
        for name, value in asdict(config).items()
        if name not in (*PLACE_FIELDS, *BUDGET_FIELDS) and _plain(value) != before.get(name)
    ]
    raise UserError(
        f"sweep '{config.resolved_run_name}' was started with another config "
        f"({', '.join(changed)}); choose another --run-name, or --fresh to start it anew"
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _finished(
    config: SweepConfig, folder: SweepFolder, known: Mapping[str, Any]
) -> SweepResult | None:
    if known.get("status") != "finished":
        return None
    if any(known["config"][name] != getattr(config, name) for name in BUDGET_FIELDS):
        return None
    here = {"model": str(folder.model), "best_config": str(folder.best_config)}
    return SweepResult(**{**known["result"], **here})


def _interrupted(folder: SweepFolder, signals: StopSignals) -> Interrupted:
    folder.update(status="stopped")
    return Interrupted(
        f"sweep {folder.path.name} is saved; the same command goes on", signals.exit_status
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


def _conclude(
    folder: SweepFolder,
    task: Task,
    space: Space,
    ranked: Sequence[TrialRecord],
    confirmation: Mapping[str, Any] | None,
    seconds: float,
) -> SweepResult:
    trials = sorted(ranked, key=lambda trial: trial.spec.index)
    best, name = ranked[0].run, ranked[0].spec.name
    score, interval, verdict = ranked[0].score, None, None
    comment = f"best of {len(ranked)} trials by {task.score}, not confirmed"
    if confirmation is not None:
        verdict = confirmation["verdict"]
        winner, default = confirmation["winner"], confirmation["default"]
        name, score, interval = winner["trial"], winner["corrected"], winner["interval"]
        best = RunFolder(folder.trials / name)
        if verdict == "worse":  # the default recipe is what to use
            name, score, interval = DEFAULT, default["mean"], default["interval"]
            best = RunFolder(folder.confirmation / run_name(DEFAULT, 0))
        low, high = interval
        comment = (
            f"{name}: {task.score} {score:.4f} (95 % interval {low:.4f} to {high:.4f}); the winner is "
            f"{verdict} {'from' if verdict == 'not distinguishable' else 'than'} the default recipe"
        )
    by_stretches = ranked[0].spec.generation is not None  # no single run has these hyperparameters
    if confirmation is not None and (by_stretches or not best.model.exists()):
        best = RunFolder(folder.confirmation / run_name(name, 0))
    outputs.write_best(folder, best, comment)
    outputs.write_tables(folder, trials, space)
    outputs.write_hparams(folder, trials, space)
    record = best.read()
    result = SweepResult(
        run=folder.path.name,
        task=task.name,
        score=float(score or 0.0),
        interval=interval,
        verdict=verdict,
        best_trial=name,
        best_hyperparameters={field: record["config"][field] for field in space},
        best_config=str(folder.best_config),
        model=str(folder.model),
        metrics=record["result"]["metrics"],
        trials=dict(Counter(trial.status for trial in trials)),
        seconds=round(seconds, 2),
    )
    say(comment)
    folder.update(
        status="finished",
        ended=now(),
        result=asdict(result),
        verdict=verdict,
        confirmation=confirmation,
    )
    # The first of the search stays, so that a sweep that is given more trials can end with it.
    kept = {best.path, ranked[0].run.path, *_candidate_paths(folder, confirmation)}
    outputs.free_models(trials, kept)
    return result


def _candidate_paths(folder: SweepFolder, confirmation: Mapping[str, Any] | None) -> list[Any]:
    candidates = confirmation["candidates"] if confirmation else []
    return [folder.trials / candidate["trial"] for candidate in candidates]
