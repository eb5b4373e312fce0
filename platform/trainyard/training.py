"""`fit`: one run from config to `model/`, on Ray. Train, tune and suite all call it."""

import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainyard.checkpoints import CheckpointStore, fault_of
from trainyard.cluster import ray_session, worker_resources
from trainyard.config import TrainConfig
from trainyard.data import PreparedData, prepare
from trainyard.doctoring.quick import warnings
from trainyard.errors import Interrupted, UserError
from trainyard.export import export_model, model_card
from trainyard.files import write_atomic
from trainyard.modeling import build_tokenizer
from trainyard.progress import ProgressBar, StopSignals, say
from trainyard.runs import Lease, RunFolder
from trainyard.splits import Splits, find_splits
from trainyard.strategies import check_strategy
from trainyard.tasks import Task
from trainyard.versions import versions


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
    started = time.monotonic()
    check_strategy(config)
    folder = RunFolder(_storage(config.storage_path) / config.resolved_run_name)
    folder.create()
    with Lease(folder.path), StopSignals(folder.stop_request) as signals:
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
            data = prepare(splits, tokenizer, config, folder.path.parent / ".cache")
            for warning in warnings(data, splits.task, config.max_length):
                say(warning)
            _open_record(folder, config, data)
            outcome = _supervise(config, splits.task, data, folder, resources, signals)
        if outcome["outcome"] == "stopped":
            folder.update(status="stopped")
            raise Interrupted(
                f"run {folder.path.name} is saved at step {outcome['step']}; the same command goes on",
                signals.exit_status,
            )
        return _conclude(config, splits, tokenizer, folder, outcome, data, started)


def _storage(path: str) -> Path:
    if "://" in path:
        raise UserError(
            f"--storage-path {path} is a URL, which runs cannot be written to yet; mount it and give "
            "the folder"
        )
    return Path(path).expanduser().absolute()  # workers have another working directory


def _check_same_run(config: TrainConfig, record: Mapping[str, Any]) -> None:
    if record and (changed := config.changed_since(record["config"])):
        raise UserError(
            f"run '{config.resolved_run_name}' was started with another config "
            f"({', '.join(changed)}); choose another --run-name, or --fresh to start it anew"
        )


def finished_run(config: TrainConfig) -> FitResult | None:
    """The result of `config`'s run, if it is finished already; touches nothing."""
    folder = RunFolder(_storage(config.storage_path) / config.resolved_run_name)
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
            workers = pool.submit(_run_workers, config, task, data, folder, resources)
            while not workers.done():
                wait([workers], timeout=0.2)
                bar.update()
        return workers.result()
    finally:
        pool.shutdown(wait=False)  # after a second signal nothing waits for the workers


def _run_workers(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
) -> dict[str, Any]:
    """Start the workers, and start them again while they were lost rather than wrong.

    Restarts are ours and not Ray Train's, which cannot tell a lost worker from a programme that
    fails in the same way every time.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = TorchTrainer(
        worker_function(config, task, data, folder, threads=int(resources.get("CPU", 1))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker=dict(resources),
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
        torch_config=TorchConfig(timeout_s=600),
    )
    before = None
    for attempt in range(config.max_failures + 1):
        try:
            outcome: dict[str, Any] = trainer.fit().return_value
            return outcome
        except ray.train.TrainingFailedError as error:
            write_atomic(folder.path / "error.txt", "".join(traceback.format_exception(error)))
            failure = (folder.progress().get("step"), _cause(error))
        if failure == before:
            return _failed(f"the same failure twice, {failure[1]}", folder)
        before = failure
        if attempt < config.max_failures:
            say(f"restarting from the last checkpoint: {failure[1]}")
    return _failed(f"{failure[1]}, after {config.max_failures} restart(s) (--max-failures)", folder)


def _cause(error: Any) -> str:
    """What the first failed worker died of, in one line."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, cause = sorted(failures.items())[0]
    return f"worker {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[-1][:300]}"


def _failed(reason: str, folder: RunFolder) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "reason": f"{reason}; see {folder.path / 'error.txt'}; the same command goes on from the "
        "last checkpoint",
    }


def worker_function(
    config: TrainConfig, task: Task, data: PreparedData, folder: RunFolder, *, threads: int
) -> Callable[[], dict[str, Any]]:
    """What each Ray Train worker runs: the loop, with as many threads as it has CPUs."""

    def work() -> dict[str, Any]:
        import torch

        from trainyard.loop import train
        from trainyard.trainer_loop import train_by_trainer

        torch.set_num_threads(max(threads, 1))
        loops = {"accelerate": train, "trainer": train_by_trainer}
        try:
            return loops[config.loop](config, task, data, folder)
        except UserError as error:  # returned, not raised: Ray would try again
            return {"outcome": "failed", "reason": str(error)}

    return work


def _conclude(
    config: TrainConfig,
    splits: Splits,
    tokenizer: Any,
    folder: RunFolder,
    outcome: Mapping[str, Any],
    data: PreparedData,
    started: float,
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
    store = CheckpointStore(folder.checkpoints)
    best = store.path(outcome["best_step"])
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
        seconds=round(time.monotonic() - started, 2),
        best_step=outcome["best_step"],
        steps=outcome["step"],
        train_samples_per_second=outcome["train_samples_per_second"],
        padding_efficiency=outcome["padding_efficiency"],
        truncated_rows={name: data.table(name).info["truncated_rows"] for name in data.folders},
    )
    card = model_card(config, splits.task, folder.read(), evaluation)
    export_model(folder, best, tokenizer, card, evaluation)
    folder.update(status="finished", result=asdict(result))
    shutil.rmtree(folder.path / "ray", ignore_errors=True)  # Ray Train's, empty of ours
    return result
