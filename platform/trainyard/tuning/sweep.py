"""`tune`: a sweep from flags to verdict. Read it top to bottom."""

import itertools
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainyard.cluster import ray_session
from trainyard.config import PLACE_FIELDS
from trainyard.data import PreparedData, prepare
from trainyard.errors import Interrupted, UserError
from trainyard.modeling import build_tokenizer
from trainyard.progress import StopSignals, say
from trainyard.runs import Lease, RunFolder
from trainyard.splits import find_splits
from trainyard.strategies import check_strategy
from trainyard.tasks import Task
from trainyard.training import storage
from trainyard.tuning import outputs
from trainyard.tuning.config import BUDGET_FIELDS, DEFAULT_TRIALS, SweepConfig
from trainyard.tuning.confirm import (
    DEFAULT,
    candidates_of,
    run_confirmation,
    run_name,
    verdict_of,
)  # fmt: skip
from trainyard.tuning.folder import SweepFolder, TrialRecord, TrialSpec, now
from trainyard.tuning.placement import place
from trainyard.tuning.runner import Supply, run_trials
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.search import check_searcher, grid_size, rank, suggest
from trainyard.tuning.space import DATA_FIELDS, Space, build_space
from trainyard.tuning.trial import Context, data_key
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
    budget = config.num_trials or (
        grid_size(space) if config.searcher == "grid" else DEFAULT_TRIALS
    )
    folder = SweepFolder(storage(config.storage_path) / config.resolved_run_name)
    RunFolder(folder.path).create()
    with Lease(folder.path), StopSignals(folder.stop_request) as signals:
        if config.fresh:
            RunFolder(folder.path).clear()
        known = folder.read()
        _check_same_sweep(config, known)
        if (result := _finished(config, known)) is not None:
            say(f"sweep {folder.path.name} is finished; more --num-trials or --fresh goes on")
            return result
        folder.records()  # a damaged folder is known before anything is started
        spent = float(known.get("seconds", 0.0))
        with ray_session(config):
            import ray

            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            placement = place(config, budget, nodes)
            task, data = _prepare_all(config, space, folder)
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
                data_fingerprint={str(key): found.fingerprint for key, found in data.items()},
                versions=versions(),
                resources_per_trial=dict(placement.per_worker),
                max_concurrent_trials=placement.concurrent,
            )
            say(
                f"sweep {folder.path.name}: {budget} trials, {placement.concurrent} at once, "
                f"{config.searcher} search of {', '.join(f'{k} {v}' for k, v in space.items())}"
            )
            try:
                left = None if config.max_seconds is None else config.max_seconds - spent
                ended = run_trials(
                    folder,
                    context,
                    _search(config, space, folder, budget),
                    SCHEDULERS[config.scheduler](config),
                    placement,
                    signals,
                    deadline=None if left is None else started + left,
                )
                if ended == "stopped":
                    raise _interrupted(folder, signals)
                ranked = rank(folder.records())
                _check_any_finished(folder, ranked)
                default = {field: getattr(config, field) for field in space}
                candidates = candidates_of(config, ranked, default)
                confirmation = None
                if config.confirm_seeds and candidates:
                    where = place(config, len(candidates) + 1, nodes)
                    if not run_confirmation(folder, context, candidates, default, where, signals):
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


def _finished(config: SweepConfig, known: Mapping[str, Any]) -> SweepResult | None:
    if known.get("status") != "finished":
        return None
    if any(known["config"][name] != getattr(config, name) for name in BUDGET_FIELDS):
        return None
    return SweepResult(**known["result"])


def _prepare_all(
    config: SweepConfig, space: Space, folder: SweepFolder
) -> tuple[Task, dict[tuple[Any, ...], PreparedData]]:
    """Tokenize once for all trials, before they hold the CPUs that Ray Data would need."""
    lists = [space[f].values if f in space else (getattr(config, f),) for f in DATA_FIELDS]
    found: dict[tuple[Any, ...], PreparedData] = {}
    for values in itertools.product(*lists):
        own = config.train_config(dict(zip(DATA_FIELDS, values, strict=True)))
        splits, tokenizer = find_splits(own), build_tokenizer(own)
        if not found:
            for note in splits.notes:
                say(note)
        found[data_key(own)] = prepare(splits, tokenizer, own, folder.path.parent / ".cache")
    return splits.task, found


def _search(config: SweepConfig, space: Space, folder: SweepFolder, budget: int) -> Supply:
    """Trials that were begun, then new ones. ASHA hears again of those that ended, to judge by."""
    begun = deque(
        trial.spec for trial in folder.records() if not trial.ended or config.scheduler == "asha"
    )

    def supply() -> TrialSpec | None:
        if begun:
            return begun.popleft()
        history = folder.records()
        index = history[-1].spec.index + 1 if history else 0
        if index >= budget:
            return None
        point = suggest(config.searcher, space, config.base, index, history)
        if point is None:
            return None
        spec = TrialSpec(index=index, name=f"trial-{index:04d}", hyperparameters=point)
        folder.add(spec)
        return spec

    return supply


def _interrupted(folder: SweepFolder, signals: StopSignals) -> Interrupted:
    folder.update(status="stopped")
    return Interrupted(
        f"sweep {folder.path.name} is saved; the same command goes on", signals.exit_status
    )


def _check_any_finished(folder: SweepFolder, ranked: Sequence[TrialRecord]) -> None:
    if any(trial.status == "finished" and trial.score is not None for trial in ranked):
        return
    known = [trial.run.read() for trial in ranked]
    reasons = [record["reason"] for record in known if "reason" in record]
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
    if not best.model.exists():  # freed when an earlier budget ended with another winner
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
    outputs.free_models(trials, {best.path, *_candidate_paths(folder, confirmation)})
    return result


def _candidate_paths(folder: SweepFolder, confirmation: Mapping[str, Any] | None) -> list[Any]:
    candidates = confirmation["candidates"] if confirmation else []
    return [folder.trials / candidate["trial"] for candidate in candidates]
