"""Exact predictions on Ray: every row of every split once, by the function that training uses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import TrainConfig
from trainyard.data import PreparedData
from trainyard.errors import UserError
from trainyard.launch import cause_of, torch_config
from trainyard.processor import claim_processor
from trainyard.workers import worker_resources

Logits = dict[str, NDArray[Any]]


def predict_on_ray(
    jobs: Sequence[tuple[str, PreparedData, TrainConfig]], storage: Path
) -> list[Logits]:
    """Logits by split, of shape [rows, labels], for each (model path, its tokenized splits, settings).

    All models are run by the same `num_workers` processes, one model after another.

    Raises:
        UserError: when the workers fail; names what the first of them died of.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    config = jobs[0][2]
    resources = worker_resources(config)
    threads = max(int(resources.get("CPU", 1)), 1)

    def work() -> list[Logits] | str:
        claim_processor(threads)
        try:
            return [predict_splits(*job) for job in jobs]
        except UserError as error:  # returned, not raised: Ray would try again
            return str(error)

    trainer = TorchTrainer(
        work,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker=dict(resources),
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=1, controller_failure_limit=3),
        ),
        torch_config=torch_config(),
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


def predict_splits(model: str, data: PreparedData, config: TrainConfig) -> Logits:
    """What one process does: load the model, predict its share, and sum the shares."""
    from trainyard.modeling import load_classifier
    from trainyard.scoring import predict
    from trainyard.strategies import build_accelerator

    accelerator = build_accelerator(config)
    classifier = accelerator.prepare_model(load_classifier(model), evaluation_mode=True)
    return {
        name: predict(accelerator, classifier, data.table(name), config) for name in data.folders
    }


def check_finite(logits: Mapping[str, NDArray[Any]], model: str) -> None:
    """Refuse a model that answers no numbers: every metric would hide it.

    Raises:
        UserError: naming the split and how many rows.
    """
    for split, found in logits.items():
        bad = int((~np.isfinite(found)).any(axis=1).sum())
        if bad:
            raise UserError(
                f"model {model} answers NaN or infinity on {bad} of {len(found)} rows of {split}; "
                "its training diverged, or --mixed-precision is too coarse for it"
            )
