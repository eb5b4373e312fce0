"""`fit`: train one run from its config to `model/`, on Ray. Sweeps and suites use it, too."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainyard.batch_plan import PLAN_VERSION
from trainyard.cluster import (
    TOKENIZERS,
    check_local_ray,
    ray_session,
    room_requested,
    worker_resources,
)
from trainyard.config import (
    SPLIT_VERSION,
    TrainConfig,
    check_packages,
    deepspeed_differences,
    python_function,
)
from trainyard.data import (
    PreparedData,
    files_of,
    find_splits,
    is_test,
    prepare,
    sample_rows,
    warnings,
)
from trainyard.doctor import preflight
from trainyard.errors import DamagedRun, Diverged, Interrupted, SupersededError, UserError
from trainyard.evaluation import figures, one_answer_words, one_answers
from trainyard.metrics import THRESHOLDS_KEY
from trainyard.models import build_tokenizer, resolve_model
from trainyard.signals import StopSignals
from trainyard.storage import (
    Fence,
    Lease,
    RunFolder,
    Stopwatch,
    file_digest,
    open_run,
    outages_logged,
    time_ledger,
    versions,
)
from trainyard.tasks import Task
from trainyard.terminal import logged, say, stage
from trainyard.training.driver.environment import (
    differences,
    environment,
    recorded_environment,
    with_workers,
)
from trainyard.training.driver.export import export_model, model_card, push_model
from trainyard.training.driver.pace import slow_settings
from trainyard.training.driver.progress_bar import ProgressBar
from trainyard.training.driver.restarts import run_workers, worker_function
from trainyard.training.driver.result import (
    NUMERICS_VERSION,
    AnotherRun,
    FitResult,
    check_base_model,
    computed_otherwise,
    earlier_result,
    outcome_of_finished,
)
from trainyard.training.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Arguments of `fit` for one trial of a sweep: prepared data and the scheduler's decisions.

    A trial with one worker trains in the calling process. A trial with more workers uses Ray Train.
    """

    task: Task
    data: PreparedData
    tokenizer: Any
    record: Mapping[str, Any]
    """Additional fields of run.json."""
    on_evaluation: Callable[[], bool]
    """Called after each evaluation but the last, with its checkpoint stored; False stops the run.

    Only runs of one worker call it. The `stop_request` of the run folder stops other runs.
    """
    stopwatch: Stopwatch
    """Stopwatch that was started with the trial. Time that `fit` does not record stays on it."""


log = logging.getLogger(__name__)


@python_function()
def fit(
    config: TrainConfig,
    trial: Trial | None = None,
    *,
    callbacks: Sequence[Any] = (),
    patience: float = 5.0,
    fence: Fence | None = None,
) -> FitResult:
    """Train the run of `config`, or resume the run where the same config was interrupted.

    A finished run is not repeated: its stored result is returned. --push-to-hub uploads the model
    in both cases.

    Args:
        config: Flags of the run.
        trial: Prepared data and decisions of a sweep; None for an ordinary run.
        callbacks: `TrainerCallback`s of transformers, for `loop="trainer"`. They run in the
            workers, and do not enter the run's identity.
        patience: Seconds to wait for another driver of the run. Processes of a killed job live for
            a second or two; those of a dead node count as alive for a minute.
        fence: Fence of the lease of the sweep or suite that the run belongs to.

    Raises:
        HeldError: Another driver still holds the run after `patience` seconds.
        SupersededError: Another driver has taken over the run, its sweep or its suite.
        Diverged: The loss, an output or the gradients were not finite.
        UserError: The flags, data, model or cluster cannot be used; checkpoints are kept.
        Interrupted: SIGTERM, Ctrl-C, a callback or `trial.on_evaluation` stopped the run;
            checkpoints are kept.
    """
    result = _fit(config, trial, callbacks, patience, fence)
    if config.push_to_hub:
        push_model(result.model, config.push_to_hub)
    return result


def _fit(
    config: TrainConfig,
    trial: Trial | None,
    callbacks: Sequence[Any],
    patience: float,
    fence: Fence | None,
) -> FitResult:
    stopwatch = trial.stopwatch if trial else Stopwatch()
    check_packages(config)
    if callbacks and config.loop != "trainer":
        raise UserError(
            f"callbacks are called by transformers' Trainer, but the loop is {config.loop}; set "
            "loop='trainer', or leave them out"
        )
    folder = open_run(config.storage_path, config.resolved_run_name, fence)
    with (
        folder.lease(patience) as lease,
        StopSignals(folder.stop_request) as signals,
        _logged_records(folder),
    ):
        if trial is None and (config.fresh or "config" not in folder.read()):
            config.check_new()
        if config.fresh:
            folder.clear()
        begun = folder.read()
        # A run that failed before its first attempt was recorded has no config.
        config = config.as_begun(begun.get("config"))
        if config.is_own and config.split_rules < SPLIT_VERSION:
            say(
                f"run {folder.path.name} keeps split version {config.split_rules}, with which it began; "
                f"--fresh splits its rows by version {SPLIT_VERSION}"
            )
        if result := earlier_result(config, folder, trial.data if trial else None):
            say(f"run {folder.path.name} is finished; --fresh would train it again")
            if changed := differences(recorded_environment(begun), environment(config)):
                say(
                    f"it was trained in another environment ({', '.join(changed)}); its result is kept"
                )
            # A crash may have left it. A run of the first version did not record the choice.
            if trial is None and begun["config"].get("keep_optimizer_state") is False:
                _drop_optimizer(config, folder)
            return result
        if trial is None:
            stage("reading the data")
            splits = find_splits(config)
            config.check_loss(splits.task)
            resolve_model(config.model_name_or_path)
            for note in splits.notes:
                say(note)
            stage("starting Ray")
        with ray_session(config, TOKENIZERS):
            resources = worker_resources(config)
            if trial is None:
                task, tokenizer = splits.task, build_tokenizer(config)
                preflight(config)
                stopwatch.lap("start_up")
                stage("tokenizing")
                cache = folder.path.parent / ".cache"
                data = prepare(splits, tokenizer, config, cache, folder)
                folder.share_tables(data.folders)
                found = [*warnings(data, task, config.max_length), *deepspeed_differences(config)]
                for sentence in (*found, *slow_settings(config, len(data.table("train")))):
                    say(sentence)
                alerts = [*splits.warnings, *found]
                stopwatch.lap("tokenization")
            else:
                task, tokenizer, data = trial.task, trial.tokenizer, trial.data
                alerts = [*data.warnings]
                stopwatch.lap("start_up")
            threads = int(resources.get("CPU", 1))
            data = _open_record(folder, config, data, trial, environment(config, threads))
            folder.update(warnings=alerts)
            if trial is None:
                folder.update(examples=sample_rows(splits))
            if trial is not None and config.worker_counts == [1]:
                outcome = worker_function(
                    config, task, data, folder, threads=threads, on_evaluation=trial.on_evaluation
                )()
                for note in outcome.notes:
                    say(note)
            else:
                outcome = outcome_of_finished(folder) or _supervise(
                    config, task, data, folder, resources, signals, lease, callbacks
                )
            stopwatch.lap("training")
        lease.check()
        folder.add_seconds(stopwatch.take())
        if workers := outcome.state.workers:
            folder.update(environments=with_workers(folder.read()["environments"], workers))
        if outcome.status == "stopped":
            folder.update(status="stopped")
            where = f"at step {outcome.state.step}"
            if outcome.by_callback:
                where += ", where a callback stopped it"
            raise Interrupted(
                f"run {folder.path.name} is saved {where}; the same command resumes it",
                signals.exit_status,
            )
        result = _conclude(config, task, tokenizer, folder, outcome, data, stopwatch)
        if trial is None:
            _drop_optimizer(config, folder)
        return result


def _drop_optimizer(config: TrainConfig, folder: RunFolder) -> None:
    if not config.keep_optimizer_state:
        folder.store().drop_optimizer()


@contextmanager
def _logged_records(folder: RunFolder) -> Iterator[None]:
    """Fetch the records of a run, and log the block to its log.txt, which is uploaded at the end.

    A folder without run.json gets no log in its bucket: --fresh would refuse to empty it. After the
    upload, the files that a finished run does not need are deleted.
    """
    folder.fetch()
    try:
        with logged(folder.path / "log.txt", folder.may_log):
            yield
    finally:
        try:  # an error here must not hide the block's
            with suppress(SupersededError), outages_logged():
                record = folder.read()
                if record:
                    folder.publish("log.txt")
                if record.get("status") == "finished":
                    folder.clean_up()
        except OSError as error:
            log.warning("log.txt of run %s is not uploaded: %s", folder.path.name, error)


def _open_record(
    folder: RunFolder,
    config: TrainConfig,
    data: PreparedData,
    trial: Trial | None,
    here: Mapping[str, Any],
) -> PreparedData:
    """Record the attempt and its environment `here` in run.json.

    Returns:
        `data` with the model's Hub commit that the first attempt used.

    Raises:
        AnotherRun: The data, the base model or the numerics of the recorded run have changed.
    """
    record = folder.read()
    if "config" in record:
        if (reason := computed_otherwise(record, data.model)) is not None:
            raise AnotherRun(f"run '{folder.path.name}' was started with another {reason}")
        check_base_model(record, data.base_digests)
    if record.get("data_fingerprint", data.fingerprint) != data.fingerprint:
        raise AnotherRun(f"the data of run '{folder.path.name}' has changed since it was started")
    attempts = record.get("environments", [])
    if record and (changed := differences(recorded_environment(record), here)):
        say(
            f"warning: this attempt runs in another environment ({', '.join(changed)}); the result need "
            "not be bit-identical to that of an undisturbed run"
        )
    if not attempts or differences(attempts[-1], here):
        attempts = [*attempts, here]
    data = replace(data, model_revision=record.get("model_revision") or data.model_revision)
    folder.update(
        name=folder.path.name,
        status="running",
        identity=config.identity(),
        plan_version=PLAN_VERSION,
        numerics_version=record.get(
            "numerics_version", 1 if "config" in record else NUMERICS_VERSION
        ),
        config=asdict(config),
        data_name=config.data_name,
        data_fingerprint=data.fingerprint,
        data_sources=dict(data.sources),
        text_sketches=dict(data.texts),
        data_files=record.get("data_files") or _file_digests(config),
        model_revision=data.model_revision,
        **data.base_digests,
        versions=versions(),
        environments=attempts,
        started=record.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **(trial.record if trial else {}),
    )
    return data


def _file_digests(config: TrainConfig) -> dict[str, str]:
    """Return the digest of each of the user's files, by flag, to recognize renamed files later."""
    names = ("train_file", "validation_file", "test_file")
    return {
        name: " ".join(map(file_digest, files_of(path)))
        for name in names
        if (path := getattr(config, name))
    }


def _supervise(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    resources: Mapping[str, float],
    signals: StopSignals,
    lease: Lease,
    callbacks: Sequence[Any],
) -> Outcome:
    """Run the workers from a thread, while the calling thread shows progress and handles signals.

    If Ray Train ran on the main thread, it would handle Ctrl-C and exit with status 0.

    Raises:
        Interrupted: A second signal came before the workers had saved.
        SupersededError: Another driver has taken over the run.
        UserError: The local Ray has ended.
    """
    pool = ThreadPoolExecutor(1)
    leaving = threading.Event()
    try:
        stage(f"training {folder.path.name}: {len(data.table('train'))} rows")
        bar = ProgressBar(folder, task.score)
        with signals.training(), room_requested(config, resources), bar:
            workers = pool.submit(
                run_workers, config, task, data, folder, resources, leaving, callbacks
            )
            while not workers.done():
                wait([workers], timeout=0.2)
                lease.poll()
                check_local_ray()
                folder.sync()
                bar.update()
        return workers.result()
    except Interrupted:
        folder.update(status="stopped")
        raise
    finally:
        leaving.set()
        pool.shutdown(wait=False)  # a second signal must not wait for the workers


def _conclude(
    config: TrainConfig,
    task: Task,
    tokenizer: Any,
    folder: RunFolder,
    outcome: Outcome,
    data: PreparedData,
    stopwatch: Stopwatch,
) -> FitResult:
    if outcome.padding_note is not None:
        folder.update(padding=outcome.padding_note)
        say(f"note: {outcome.padding_note}; its training batches are padded all the same")
    if outcome.error is not None:
        status = "diverged" if isinstance(outcome.error, Diverged) else "failed"
        folder.update(status=status, reason=str(outcome.error))
        raise outcome.error.within(f"run {folder.path.name} failed: ")
    state = outcome.state
    assert state.best_step is not None  # the last step of a run is evaluated
    assert state.best_score is not None
    try:
        best = folder.store().bring_best(state.best_step)
    except DamagedRun as damaged:
        folder.update(status="failed", reason=str(damaged))
        raise
    evaluation = state.best_evaluation
    answers = one_answers(evaluation)
    thresholds = next(iter(evaluation.values())).get(THRESHOLDS_KEY, {})
    evaluation = {split: figures(found) for split, found in evaluation.items()}
    words = one_answer_words(answers)
    alerts = [*folder.read().get("warnings", []), *([words] if words else [])]
    tables = {name: data.table(name) for name in data.folders}
    rows = {name: len(table) for name, table in tables.items()}
    card = model_card(config, task, {**folder.read(), "warnings": alerts}, evaluation, rows)
    try:
        export_model(
            folder, best, tokenizer, card, evaluation, config.max_length, task.labels, thresholds
        )
    except UserError as error:
        folder.update(status="failed", reason=str(error))
        raise
    folder.publish("model", "log.txt")
    stopwatch.lap("export")
    folder.add_seconds(stopwatch.take())
    spent = time_ledger(folder.read(), folder.progress())  # of all attempts
    result = FitResult(
        run=folder.path.name,
        task=task.name,
        score=state.best_score,
        metrics={split: found["metrics"] for split, found in evaluation.items()},
        intervals={split: found["intervals"] for split, found in evaluation.items()},
        model=folder.address("model"),
        seconds=round(sum(spent.values()), 2),
        best_step=state.best_step,
        steps=state.step,
        train_samples_per_second=outcome.train_samples_per_second,
        padding_efficiency=outcome.padding_efficiency,
        truncated_rows={name: table.info["truncated_rows"] for name, table in tables.items()},
        rows=rows,
        score_metric=task.score,
        time_ledger=spent,
        mfu=outcome.mfu,
        peak_flops=outcome.peak_flops,
        warnings=alerts,
        label_thresholds=thresholds,
        data_name=config.data_name,
        chosen_on=[split for split in evaluation if state.evaluations > 1 and not is_test(split)],
    )
    if words:
        say(f"note: {words}")
    known = {"one_answer": answers} if answers else {}
    folder.update(status="finished", result=asdict(result), warnings=alerts, **known)
    return result
