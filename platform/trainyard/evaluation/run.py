"""Run an evaluation: predict all rows on Ray, compute the figures, and write the report."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray.train
from numpy.typing import NDArray

from trainyard.cluster import (
    build_trainer,
    cause_of,
    claim_processor,
    mistake_of,
    ray_session,
    release_orphans,
    remedy_of,
    worker_resources,
)
from trainyard.config import ScoringFlags, WorkerFlags, python_function
from trainyard.data import PreparedData, Splits, prepare
from trainyard.errors import UserError
from trainyard.evaluation.comparison import Selection, clean_rows, compare, selection_of
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.details import calibration, confusion, per_class, slices, worst_rows
from trainyard.evaluation.inputs import (
    EvaluatedModel,
    column_order,
    describe,
    extra_columns,
    group_of_rows,
    in_task_order,
    labeled_splits,
    max_length,
    texts_of,
    with_cuts,
    with_delimiter,
)
from trainyard.evaluation.report import page
from trainyard.evaluation.scoring import (
    not_finite,
    one_answer_words,
    one_answers,
    padding_of,
    predict,
    score,
)
from trainyard.inference import COLDEST, HOTTEST, stored_temperature
from trainyard.metrics import as_thresholds, with_metrics
from trainyard.models import CLASSIFIER, build_accelerator, build_tokenizer, load_model
from trainyard.storage import JobFolder, storage_folder, versions, write_atomic, write_json
from trainyard.summary import Readable
from trainyard.terminal import progress_bar, say, stage

Logits = dict[str, NDArray[Any]]
"""Logits by split, shape [rows, labels]."""
Job = tuple[str, PreparedData, ScoringFlags]
"""Work of the workers on one model: its path, the tokenized splits, and the scoring flags."""


def predict_on_ray(jobs: Sequence[Job], config: WorkerFlags, storage: Path) -> list[Logits]:
    """Predict the splits of each job.

    The same worker processes run all jobs, one after another. Returns for each job the logits by
    split, shape [rows, labels].

    Raises:
        UserError: No worker fits into the cluster, or the workers failed.
    """
    resources = worker_resources(config)
    counted = storage / ".predicted_rows"
    threads = max(int(resources.get("CPU", 1)), 1)

    def work() -> list[Logits] | str:
        claim_processor(threads)
        try:
            count = _RowCount(counted)
            return [predict_splits(*job, use_gpu=config.use_gpu, progress=count) for job in jobs]
        except UserError as error:
            if config.worker_counts != [1]:
                raise  # ends the other workers, which wait for this one
            return str(error)  # else Ray would log a traceback

    rows = sum(len(data.table(name)) for _, data, _ in jobs for name in data.folders)
    with _bar(counted, rows):
        for is_last in (False, True):
            trainer = build_trainer(
                config,
                work,
                config.worker_counts[0],
                resources,
                storage,
                max_failures=0,  # Ray would also retry after a mistake
                controller_failure_limit=3,
            )
            try:
                found: list[Logits] | str = trainer.fit().return_value
                break
            except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                if (mistake := mistake_of(error)) is not None:
                    raise mistake from error
                if is_last:
                    remedy = remedy_of(error, "--per-device-eval-batch-size or --max-length")
                    raise UserError(
                        f"evaluation failed, {cause_of(error)}{remedy}; --verbose shows the worker's "
                        "log"
                    ) from error
                say(f"the workers are started once more: {cause_of(error)}")
                release_orphans()
            finally:
                shutil.rmtree(storage / "ray", ignore_errors=True)  # of Ray Train
    if isinstance(found, str):
        raise UserError(found)
    return found


class _RowCount:
    """Counter of predicted rows, written to a file for the driver every 0.5 seconds at most."""

    def __init__(self, file: Path) -> None:
        self._file, self._rows, self._next = file, 0, 0.0

    def __call__(self, rows: int) -> None:
        self._rows += rows
        if time.monotonic() >= self._next:
            write_atomic(self._file, str(self._rows))
            self._next = time.monotonic() + 0.5


@contextlib.contextmanager
def _bar(file: Path, rows: int) -> Iterator[None]:
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(0.5):
            if file.exists():
                bar.update(int(file.read_text()) - bar.n)

    file.unlink(missing_ok=True)  # left by a killed driver
    with progress_bar(rows, unit="row", title="predict") as bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            file.unlink(missing_ok=True)
        bar.update(rows - bar.n)


def predict_splits(
    model: str,
    data: PreparedData,
    config: ScoringFlags,
    *,
    use_gpu: bool,
    progress: Callable[[int], None] | None = None,
) -> Logits:
    """Load the model in this worker, predict its share of the rows, and combine all shares."""
    accelerator = build_accelerator(config.mixed_precision, use_gpu=use_gpu)
    classifier, _ = load_model(CLASSIFIER, model, revision=data.model_revision)
    tables = {name: data.table(name) for name in data.folders}
    padding = padding_of(classifier, next(iter(tables.values())), data.padding_side)
    prepared = accelerator.prepare_model(classifier, evaluation_mode=True)
    return {
        name: predict(accelerator, prepared, table, config, padding, progress)
        for name, table in tables.items()
    }


def check_finite(logits: Mapping[str, NDArray[Any]], model: str) -> None:
    """Refuse a model with NaN or infinite logits, which metrics would hide.

    Raises:
        UserError: A logit is not finite.
    """
    if fault := not_finite(logits):
        raise UserError(
            f"model {model} answers {fault}; its training diverged, or --mixed-precision is too "
            "coarse for it"
        )


@dataclass(frozen=True, repr=False)
class Evaluation(Readable):
    """Result of an evaluation; `details` is the content of evaluation.json."""

    folder: Path
    details: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the job's JSON result: the figures without the tables."""
        splits = self.details["splits"]
        names = ("run", "task", "data_name", "score", "model", "seconds")
        found = {name: self.details[name] for name in names}
        found["score_metric"] = self.details["score_metric"]
        found["rows"] = {name: split["rows"] for name, split in splits.items()}
        found["metrics"] = {name: split["metrics"] for name, split in splits.items()}
        found["intervals"] = {name: split["intervals"] for name, split in splits.items()}
        if self.details["against"]:
            found["against"] = self.details["against"]
            found["verdict"] = {
                name: split["comparison"]["verdict"] for name, split in splits.items()
            }
        return {"job": "eval", **found, "report": str(self.folder / "report.html")}


@python_function()
def evaluate(config: EvalConfig) -> Evaluation:
    """Evaluate a model; write evaluation.json, report.html and, with `calibrate`, its temperature.

    Raises:
        UserError: The model, the rows and the flags do not fit each other, the workers failed, or the
            temperature cannot be stored.
    """
    started = time.monotonic()
    model = describe(config.model_name_or_path)
    other = describe(config.against) if config.against else None
    stored = _stored_temperature(model) if not config.calibrate else None
    if config.calibrate and model.folder is None:
        raise UserError(
            f"--calibrate stores the temperature with the model, but {model.name} is not a local "
            "folder; download it and give its folder"
        )
    config = with_delimiter(config, model)
    stage(f"reading the labeled rows for {model.name}")
    splits = labeled_splits(config, model, config.splits)
    splits = replace(splits, task=with_metrics(splits.task, config.metrics))
    if config.calibrate and splits.task.problem_type == "regression":
        raise UserError("--calibrate needs class probabilities; a regression has none")
    models = [model, *([other] if other else [])]
    if config.label_thresholds != "fitted":
        models = [replace(each, cuts=None) for each in models]
    # A model that does not fit the task is refused here, before workers start.
    orders = [column_order(each, splits.task, config.label_mapping) for each in models]
    cuts = [
        with_cuts(splits.task, each, order).cuts for each, order in zip(models, orders, strict=True)
    ]
    splits = replace(splits, task=replace(splits.task, cuts=cuts[0]))
    name = config.resolved_run_name(splits.task.name)
    folder = JobFolder(storage_folder(config.storage_path) / name)
    cache = folder.path.parent / ".cache"
    facts = {
        split.name: _Facts(
            extra_columns(config, splits, split.name), group_of_rows(config, splits, split.name)
        )
        for split in splits.splits
    }
    for note in splits.notes:
        say(note)
    with folder.created():
        stage(f"starting {config.num_workers} worker process(es)")
        with ray_session(config):
            jobs = _prepare(config, splits, models, cache)
            for split in splits.splits:  # now the cache has the sketches of their texts
                uses = [
                    selection_of(each, config, splits.task.name, split, cache) for each in models
                ]
                facts[split.name] = replace(facts[split.name], selections=uses)
            notes = _notes_on_cuts(models[0], facts)
            for note in notes:
                say(note)
            logits = _predict(config, jobs, models, orders, folder.path)
    splits, data = replace(splits, notes=(*splits.notes, *notes)), jobs[0][1]
    stage("computing intervals, slices and calibration")
    found = {
        name: _evaluate_split(
            config, splits, name, data, [each[name] for each in logits], facts[name], cuts[-1]
        )
        for name in facts
    }
    if words := one_answer_words(one_answers(found)):
        say(f"note: {words}")
    headlines = [split["metrics"][splits.task.score] for split in found.values()]
    details = {
        "job": "eval",
        "run": folder.path.name,
        "task": splits.task.name,
        "data_name": config.data_name(splits.task.name),
        "score": sum(headlines) / len(headlines),
        "score_metric": splits.task.score,
        "model": model.name,
        "against": config.against,
        "group_column": config.group_column,
        "max_length": max_length(model, config.max_length),
        "stored_temperature": stored,
        "label_thresholds": None
        if models[0].cuts is None
        else as_thresholds(splits.task.cuts, splits.task.labels),
        "notes": list(splits.notes),
        "splits": found,
        "seconds": round(time.monotonic() - started, 2),
        "versions": versions(),
    }
    write_json(folder.path / "evaluation.json", details)
    write_atomic(folder.path / "report.html", page(details))
    if config.calibrate:
        store_temperature(cast("Path", model.folder), found)
    return Evaluation(folder.path, details)


def _stored_temperature(model: EvaluatedModel) -> float | None:
    found = stored_temperature(model.folder) if model.folder else 1.0
    return None if found == 1 else found


def _prepare(
    config: EvalConfig, splits: Splits, models: Sequence[EvaluatedModel], cache: Path
) -> list[Job]:
    """Tokenize the splits for each model."""
    jobs = []
    for model in models:
        scoring = config.scoring(model.name, max_length(model, config.max_length))
        data = prepare(splits, build_tokenizer(scoring), scoring, cache)
        jobs.append((model.path, data, scoring))
    return jobs


def _predict(
    config: EvalConfig,
    jobs: Sequence[Job],
    models: Sequence[EvaluatedModel],
    orders: Sequence[list[int]],
    folder: Path,
) -> list[Logits]:
    """Return the logits of all models in the task's order."""
    found = predict_on_ray(jobs, config, folder)
    for model, logits in zip(models, found, strict=True):
        check_finite(logits, model.name)
    return [
        {name: in_task_order(logits, order) for name, logits in each.items()}
        for each, order in zip(found, orders, strict=True)
    ]


@dataclass(frozen=True)
class _Facts:
    """Facts about a split, read before any model runs: slices, groups, and uses of its rows."""

    columns: Mapping[str, Sequence[str]]
    groups: NDArray[Any] | None
    selections: Sequence[Selection] = ()


def _evaluate_split(
    config: EvalConfig,
    splits: Splits,
    name: str,
    data: PreparedData,
    logits: list[NDArray[Any]],
    facts: _Facts,
    other_cuts: Any,
) -> dict[str, Any]:
    """Compute all results of the first model on one split, and its comparison with the second.

    Calibration and comparison leave out rows that chose the models, if other rows were set aside.
    """
    task, table = splits.task, data.table(name)
    labels, groups = table.labels[:], facts.groups
    mine, seed = logits[0], config.seed
    worst = worst_rows(task, mine, labels, config.num_errors)
    texts = texts_of(splits, name, [error["row"] for error in worst])
    found: dict[str, Any] = {
        "rows": len(labels),
        "truncated_rows": int(table.info["truncated_rows"]),
        **score(task, mine, labels, seed=seed, groups=groups),
        "classes": per_class(task, mine, labels, seed=seed),
        "confusion": confusion(task, mine, labels),
        "slices": slices(task, mine, labels, table.lengths, facts.columns, seed=seed),
        "worst": [{**error, **texts[error["row"]]} for error in worst],
    }
    if task.problem_type != "regression":
        rows, (selection,) = clean_rows(facts.selections[:1], labels)
        kept = slice(None) if rows is None else rows
        found["calibration"] = calibration(
            task.problem_type, mine[kept], labels[kept], seed=seed, selection=selection
        )
    if len(logits) > 1:
        names = (config.model_name_or_path, str(config.against))
        rows, on_rows = clean_rows(facts.selections, labels)
        kept = slice(None) if rows is None else rows
        found["comparison"] = {
            **compare(
                task,
                mine[kept],
                logits[1][kept],
                labels[kept],
                names=names,
                seed=seed,
                selections=on_rows,
                groups=None if groups is None else groups[kept],
                other_cuts=other_cuts,
            ),
            "selections": [each.as_json() for each in on_rows],
        }
    return found


def _notes_on_cuts(model: EvaluatedModel, facts: Mapping[str, _Facts]) -> list[str]:
    """Return a note that the model's thresholds apply, with the splits they were fitted on."""
    if model.cuts is None:
        return []
    fitted = [
        name for name, found in facts.items() if found.selections[0].kind in ("epochs", "trials")
    ]
    seen = (
        f"; they were fitted on rows of {' and '.join(fitted)}, so its F1 is too high"
        if fitted
        else ""
    )
    return [f"note: labels apply at the thresholds that {model.name} stores{seen}"]


def store_temperature(folder: Path, splits: Mapping[str, Any]) -> None:
    """Write the temperature, by which predictions divide logits, to calibration.json of the model.

    The temperature is that of the first split.

    Raises:
        UserError: The fitted temperature is the lower bound, as when all rows are right, or the
            folder cannot be written.
    """
    name, found = next(iter(splits.items()))
    fields = ("temperature", "before", "after", "rows", "selection")
    kept = {key: found["calibration"][key] for key in fields}
    if kept["temperature"] == COLDEST:
        raise UserError(
            f"--calibrate: with {100 * kept['before']['accuracy']:.4g} % of {name} right, a "
            f"lower temperature always fits better, even below {COLDEST:g}, so none is stored "
            "(the report is); calibrate on more rows, some of them hard"
        )
    if kept["temperature"] == HOTTEST:
        say(
            f"note: on {name} the model is no better than chance, so calibration makes its scores alike"
        )
    path = folder / "calibration.json"
    try:
        write_json(path, {**kept, "split": name})
    except OSError as error:
        raise UserError(
            f"--calibrate: {path} cannot be written ({error.strerror}), so no temperature is stored (the "
            "report is); copy the model to a folder that can"
        ) from error
    say(f"temperature {kept['temperature']:.3f} is stored in {path}")
    if kept["selection"]:
        say(f"note: {kept['selection']}; calibrate on other rows where there are some")
