"""What a sweep found, from its folders: the result, and the files for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainyard.storage import SweepFolder, TrialRecord, now
from trainyard.tasks import Task
from trainyard.terminal import say
from trainyard.tuning import outputs
from trainyard.tuning.confirm import DEFAULT, run_name
from trainyard.tuning.space import Space


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


def conclude(
    folder: SweepFolder,
    task: Task,
    space: Space,
    ranked: Sequence[TrialRecord],
    confirmation: Mapping[str, Any] | None,
    unconfirmed: str,
    seconds: float,
) -> SweepResult:
    """Choose what to recommend, write it down, and free what lost.

    Without a `confirmation`, `unconfirmed` says why, where that is not as it was asked for.
    """
    trials = sorted(ranked, key=lambda trial: trial.spec.index)
    best, name = ranked[0].run, ranked[0].spec.name
    score, interval, verdict = ranked[0].score, None, None
    comment = f"best of {len(ranked)} trials by {task.score}, not confirmed"
    if unconfirmed:
        comment += f": {unconfirmed}"
    if confirmation is not None:
        verdict = confirmation["verdict"]
        winner, default = confirmation["winner"], confirmation["default"]
        name, score, interval = winner["trial"], winner["corrected"], winner["interval"]
        best = folder.run("search", name)
        if verdict == "worse":  # the default recipe is what to use
            name, interval = DEFAULT, default["interval"]
            score = default.get("corrected", default["mean"])
            best = folder.run("confirmation", run_name(DEFAULT, 0))
        low, high = interval
        comment = f"{name}: {task.score} {score:.4f} (95 % interval {low:.4f} to {high:.4f}); "
        if verdict is None:
            comment += f"no verdict: {confirmation['withheld']}"
        else:
            than = "from" if verdict == "not distinguishable" else "than"
            comment += f"the winner is {verdict} {than} the default recipe"
    by_stretches = ranked[0].spec.generation is not None  # no single run has these hyperparameters
    if confirmation is not None and (by_stretches or not best.model.exists()):
        best = folder.run("confirmation", run_name(name, 0))
    folder.check()
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
        reason=unconfirmed or None,
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
