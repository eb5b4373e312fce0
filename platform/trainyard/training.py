"""`fit`: one run from config to `model/`, on Ray. Train, tune and suite all call it."""

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

from trainyard.checkpoints import CheckpointStore, fault_of
from trainyard.cluster import ray_session
from trainyard.config import TrainConfig
from trainyard.data import PreparedData, prepare
from trainyard.data_doctor.quick import warnings
from trainyard.doctor import preflight
from trainyard.errors import Interrupted, UserError
from trainyard.export import export_model, model_card
from trainyard.launch import run_workers
from trainyard.modeling import build_tokenizer
from trainyard.progress import ProgressBar, StopSignals, say
from trainyard.runs import Lease, RunFolder, storage_folder
from trainyard.splits import Splits, find_splits
from trainyard.stopwatch import Stopwatch
from trainyard.strategies import check_strategy
from trainyard.tasks import Task
from trainyard.versions import versions
from trainyard.workers import worker_resources


@dataclass(frozen=True)
class FitResult:
    """What a finished run found; `score` is the task's headline metric, higher is better.

    `metrics` holds {split: {metric: value}} of the best checkpoint, `intervals` its 95 % bootstrap
    intervals, `model` the folder that transformers loads.
    """

    run: str
    task: str
    score: float
    metrics: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, list[float]]]
    model: str
    seconds: float
    best_step: int
    steps: int
    train_samples_per_second: float | None
    padding_efficiency: float
    truncated_rows: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """The last line that the job prints."""
        return {"job": "train", **asdict(self)}


def fit(config: TrainConfig) -> FitResult:
    """Fine-tune as `config` says, or go on where the same config was interrupted.

    A run that is already finished is not done again: its result is returned.

    Raises:
        UserError: for anything the user can mend; what was trained so far is kept.
        Interrupted: after SIGTERM or Ctrl-C, when the state is saved.
    """
    watch = Stopwatch()
    check_strategy(config)
    folder = RunFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    folder.create()
    with Lease(folder.path) as lease, StopSignals(folder.stop_request) as signals:
        if config.fresh:
            folder.clear()
        _check_same_run(config, folder.read())
        if (result := _finished(folder)) is not None:
            say(f"run {folder.path.name} is finished; --fresh would train it again")
            return result
        splits = find_splits(config)
        tokenizer = build_tokenizer(config)
        for note in splits.notes:
            say(note)
        with ray_session(config):
            resources = worker_resources(config)
            preflight(config, folder.path.parent)
            watch.lap("start_up")
            data = prepare(splits, tokenizer, config, folder.path.parent / ".cache")
            for warning in warnings(data, splits.task, config.max_length):
                say(warning)
            watch.lap("tokenization")
            _open_record(folder, config, data)
            outcome = _supervise(config, splits.task, data, folder, resources, signals)
            watch.lap("training")
        lease.check()
        folder.add_seconds(watch.seconds)
        if outcome["outcome"] == "stopped":
            folder.update(status="stopped")
            raise Interrupted(
                f"run {folder.path.name} is saved at step {outcome['step']}; the same command goes on",
                signals.exit_status,
            )
        return _conclude(config, splits, tokenizer, folder, outcome, data, watch)


def _check_same_run(config: TrainConfig, record: Mapping[str, Any]) -> None:
    if record and (changed := config.changed_since(record["config"])):
        raise UserError(
            f"run '{config.resolved_run_name}' was started with another config "
            f"({', '.join(changed)}); choose another --run-name, or --fresh to start it anew"
        )


def finished_run(config: TrainConfig) -> FitResult | None:
    """The result of `config`'s run, if it is finished already; touches nothing."""
    folder = RunFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    record = folder.read()
    if not record or config.changed_since(record["config"]):
        return None
    return _finished(folder)


def _finished(folder: RunFolder) -> FitResult | None:
    record = folder.read()
    if record.get("status") != "finished" or not (folder.model / "model.safetensors").exists():
        return None
    return FitResult(**{**record["result"], "model": str(folder.model)})


def _open_record(folder: RunFolder, config: TrainConfig, data: PreparedData) -> None:
    record = folder.read()
    if record and record["data_fingerprint"] != data.fingerprint:
        raise UserError(
            f"the data of run '{folder.path.name}' has changed since it was started; choose another "
            "--run-name, or --fresh to start it anew"
        )
    folder.update(
        name=folder.path.name,
        status="running",
        identity=config.identity(),
        config=asdict(config),
        data_fingerprint=data.fingerprint,
        versions=versions(),
        started=record.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _supervise(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
    signals: StopSignals,
) -> dict[str, Any]:
    """Run the workers from a thread, while this one shows progress and takes signals.

    (On the main thread Ray Train would take over Ctrl-C, and exit with status 0.)
    """
    pool = ThreadPoolExecutor(1)
    try:
        with signals.training(), ProgressBar(folder) as bar:
            workers = pool.submit(run_workers, config, task, data, folder, resources)
            while not workers.done():
                wait([workers], timeout=0.2)
                bar.update()
        return workers.result()
    finally:
        pool.shutdown(wait=False)  # after a second signal nothing waits for the workers


def _conclude(
    config: TrainConfig,
    splits: Splits,
    tokenizer: Any,
    folder: RunFolder,
    outcome: Mapping[str, Any],
    data: PreparedData,
    watch: Stopwatch,
) -> FitResult:
    for note in outcome.get("skipped_checkpoints", []):
        say(note)
    if outcome["outcome"] == "failed":
        folder.update(status="failed", reason=outcome["reason"])
        raise UserError(f"run {folder.path.name} failed: {outcome['reason']}")
    if outcome["best_step"] is None:
        folder.update(status="failed", reason="no evaluation gave a number")
        raise UserError(
            f"run {folder.path.name} failed: no evaluation gave a finite score; lower --learning-rate"
        )
    best = CheckpointStore(folder.checkpoints).path(outcome["best_step"])
    if (fault := fault_of(best)) is not None:
        raise UserError(
            f"the best checkpoint {best} is damaged ({fault}); use --fresh to train it again"
        )
    evaluation = outcome["best_evaluation"]
    result = FitResult(
        run=folder.path.name,
        task=splits.task.name,
        score=outcome["best_score"],
        metrics={split: found["metrics"] for split, found in evaluation.items()},
        intervals={split: found["intervals"] for split, found in evaluation.items()},
        model=str(folder.model),
        seconds=round(watch.total(), 2),
        best_step=outcome["best_step"],
        steps=outcome["step"],
        train_samples_per_second=outcome["train_samples_per_second"],
        padding_efficiency=outcome["padding_efficiency"],
        truncated_rows={name: data.table(name).info["truncated_rows"] for name in data.folders},
    )
    card = model_card(config, splits.task, folder.read(), evaluation)
    export_model(folder, best, tokenizer, card, evaluation)
    folder.add_seconds({"export": watch.lap("export")})
    folder.update(status="finished", result=asdict(result))
    shutil.rmtree(folder.path / "ray", ignore_errors=True)  # Ray Train's, empty of ours
    return result
