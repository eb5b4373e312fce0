"""Packages that only some values of flags need, and DeepSpeed's own check of a user's JSON."""

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainyard.config.deepspeed_json import merge_deepspeed_json
from trainyard.config.train import TrainConfig
from trainyard.errors import UserError


@dataclass(frozen=True)
class Extra:
    """Package that a flag's value needs."""

    module: str
    """Module to import, which is also the flag's value."""
    flag: str
    package: str
    """Package on PyPI that has the module."""
    alternative: str
    """Advice without the package."""
    versions: str = ""
    """Accepted versions, as pip reads them."""

    def absent(self, place: str = "") -> str:
        """Return the error for a missing package; `place` is as in " on 10.0.0.2"."""
        requirement = f"'{self.package}{self.versions}'" if self.versions else self.package
        return (
            f"{self.flag} {self.module} needs the package {self.module}, which is not installed{place}; "
            f"install it (pip install {requirement}), or {self.alternative}"
        )


TENSORBOARD = "leave it out: TensorBoard needs no other package"
EXTRAS = (
    Extra("deepspeed", "--strategy", "deepspeed", "use --strategy fsdp", "~=0.19.8"),
    Extra("mlflow", "--report-to", "mlflow-skinny", TENSORBOARD),
    Extra("wandb", "--report-to", "wandb", TENSORBOARD),
)


def needed_extras(config: TrainConfig) -> list[Extra]:
    """Return the extras that the flags of a run need, in its driver and on its nodes."""
    return [extra for extra in EXTRAS if extra.module in (config.strategy, *config.report_to)]


def check_packages(config: TrainConfig) -> None:
    """Refuse flags whose package or server is missing, or whose file DeepSpeed refuses.

    Raises:
        UserError: A package is not installed. Or MLflow has no server, and runs are in a bucket. Or
            a value of the DeepSpeed JSON is of another kind.
    """
    for extra in needed_extras(config):
        if importlib.util.find_spec(extra.module) is None:
            raise UserError(extra.absent())
    server = "MLFLOW_TRACKING_URI"
    if "mlflow" in config.report_to and "://" in config.storage_path and server not in os.environ:
        raise UserError(
            f"--report-to mlflow with --storage-path {config.storage_path} needs a server; set {server}"
        )
    if config.deepspeed_config is not None:
        _check_values(config)


MODELS = {
    "CommsLoggerConfig": "comms_logger.",
    "DeepSpeedThroughputTimerConfig": "timers.throughput.",
    "DeepSpeedZeroConfig": "zero_optimization.",
}
"""Sections of the JSON by DeepSpeed's classes whose names an error has."""


def _check_values(config: TrainConfig) -> None:
    """Build DeepSpeed's own config from the keys that are passed to it."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    ours = {
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        "zero_optimization": {"stage": config.zero_stage},
    }
    try:
        DeepSpeedConfig(merge_deepspeed_json(ours, config.deepspeed_config))
    except ValidationError as error:
        raise UserError(f"--deepspeed-config: {' and '.join(_expected(error))}") from error


def _expected(error: Any) -> Iterator[str]:
    """Yield key, value and expected value of each error of a class of DeepSpeed."""
    for one in error.errors():
        path = MODELS.get(error.title, "") + ".".join(map(str, one["loc"]))
        expected = one["msg"].removeprefix("Input should be ").partition(",")[0]
        yield f"{path} is {json.dumps(one['input'], default=str)}; it must be {expected}"
