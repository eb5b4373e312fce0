"""Exact predictions on Ray: every row of every split once, by the same function as in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trainyard.cluster import build_trainer, cause_of, claim_processor, worker_resources
from trainyard.data import PreparedData
from trainyard.errors import UserError
from trainyard.evaluation.scoring import not_finite, padding_of, predict
from trainyard.flags import ScoringFlags, WorkerFlags
from trainyard.models import CLASSIFIER, build_accelerator, load_model

Logits = dict[str, NDArray[Any]]


def predict_on_ray(
    jobs: Sequence[tuple[str, PreparedData, ScoringFlags]], config: WorkerFlags, storage: Path
) -> list[Logits]:
    """Predict each (model path, tokenized splits, settings); logits by split, shape [rows, labels].

    The same `num_workers` processes run all models, one after another.

    Raises:
        UserError: when the workers fail, with the cause of the first failure.
    """
    import ray.train

    resources = worker_resources(config)
    threads = max(int(resources.get("CPU", 1)), 1)

    def work() -> list[Logits] | str:
        claim_processor(threads)
        try:
            return [predict_splits(*job, use_gpu=config.use_gpu) for job in jobs]
        except UserError as error:  # returned, not raised: Ray would retry
            return str(error)

    trainer = build_trainer(
        config,
        work,
        config.worker_counts[0],
        resources,
        storage,
        max_failures=1,
        controller_failure_limit=3,
    )
    try:
        found: list[Logits] | str = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"evaluation failed, {cause_of(error)}; --verbose shows the worker's log"
        ) from error
    if isinstance(found, str):
        raise UserError(found)
    return found


def predict_splits(
    model: str, data: PreparedData, config: ScoringFlags, *, use_gpu: bool
) -> Logits:
    """Load the model in one process, predict its share of the rows, and sum the shares."""
    accelerator = build_accelerator(config.mixed_precision, use_gpu=use_gpu)
    classifier, _ = load_model(CLASSIFIER, model, revision=data.model_revision)
    tables = {name: data.table(name) for name in data.folders}
    padding = padding_of(classifier, next(iter(tables.values())), data.padding_side)
    prepared = accelerator.prepare_model(classifier, evaluation_mode=True)
    return {
        name: predict(accelerator, prepared, table, config, padding)
        for name, table in tables.items()
    }


def check_finite(logits: Mapping[str, NDArray[Any]], model: str) -> None:
    """Refuse a model with NaN or infinite logits: every metric would hide them.

    Raises:
        UserError: naming the split and the number of rows.
    """
    if fault := not_finite(logits):
        raise UserError(
            f"model {model} answers {fault}; its training diverged, or --mixed-precision is too "
            "coarse for it"
        )
