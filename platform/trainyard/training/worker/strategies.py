"""The ways in which workers share a model: a row with wrapper and saved state for each --strategy."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.errors import DamagedRun, UserError
from trainyard.models import build_accelerator
from trainyard.training.worker.gradients import GradientTree, MeanOfWorkers

OPTIMIZER_FILE = "optimizer.pt"


@dataclass(frozen=True)
class Strategy:
    """One --strategy: arguments of the Accelerator, and functions to save and load the full state."""

    accelerator_arguments: Callable[[TrainConfig], dict[str, Any]]
    state: Callable[[Any, Any, Any], tuple[dict[str, Any], dict[str, Any]]]
    """(accelerator, model, optimizer) -> full model and optimizer state on rank 0."""
    load: Callable[[Any, Any, Any, Path], None]
    """(accelerator, model, optimizer, checkpoint folder): the opposite, on every rank."""
    gradients: type[MeanOfWorkers]
    """Sum of a step's gradients, over a process's micro-batches and over all processes."""


def check_strategy(config: TrainConfig) -> None:
    """Refuse a strategy whose package is not installed, before anything is started."""
    if config.strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "--strategy deepspeed needs the package deepspeed, which is not installed; install it "
            "(pip install 'trainyard[deepspeed]'), or use --strategy fsdp"
        )


def training_accelerator(config: TrainConfig) -> Any:
    """Accelerate, set up for the config's strategy."""
    return build_accelerator(
        config.mixed_precision,
        use_gpu=config.use_gpu,
        arguments=STRATEGIES[config.strategy].accelerator_arguments(config),
    )


def _ddp(_: TrainConfig) -> dict[str, Any]:
    from accelerate import DistributedDataParallelKwargs

    # Buffers are constants here (positions): broadcasting them before each forward only costs.
    return {"kwargs_handlers": [DistributedDataParallelKwargs(broadcast_buffers=False)]}


def _fsdp(_: TrainConfig) -> dict[str, Any]:
    from accelerate import FullyShardedDataParallelPlugin

    return {
        "fsdp_plugin": FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
        )
    }


def _deepspeed(config: TrainConfig) -> dict[str, Any]:
    from accelerate import DeepSpeedPlugin

    return {
        "deepspeed_plugin": DeepSpeedPlugin(
            hf_ds_config={
                "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
                "gradient_accumulation_steps": 1,  # micro-batches are weighted and summed by the loop
                "gradient_clipping": config.max_grad_norm,
                "zero_optimization": {
                    "stage": config.zero_stage,
                    "stage3_gather_16bit_weights_on_model_save": True,
                },
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": config.mixed_precision == "bf16"},
                "fp16": {"enabled": config.mixed_precision == "fp16"},
            }
        )
    }


def _plain_state(accelerator: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
    return accelerator.unwrap_model(model).state_dict(), optimizer.state_dict()


def _stored_weights(model: Any, folder: Path) -> dict[str, Any]:
    """A checkpoint's weights, under all names of `model`: tied ones are stored under one of theirs.

    Raises:
        DamagedRun: when they are not those of the model.
    """
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    for name, source in model.all_tied_weights_keys.items():
        if source in weights:
            weights.setdefault(name, weights[source])
    if odd := sorted(weights.keys() ^ model.state_dict().keys()):
        raise DamagedRun(
            f"checkpoint {folder} does not fit the model: {len(odd)} weights are in only one of the "
            f"two, such as {odd[0]}",
            remedy="use --fresh to train the run anew",
        )
    return weights


def _plain_load(accelerator: Any, model: Any, optimizer: Any, folder: Path) -> None:
    import torch

    bare = accelerator.unwrap_model(model)
    bare.load_state_dict(_stored_weights(bare, folder))
    optimizer.load_state_dict(
        torch.load(folder / OPTIMIZER_FILE, map_location=accelerator.device, weights_only=True)
    )


def _sharded_state(_: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer.optimizer, options=options)  # type: ignore[no-any-return]


def _sharded_load(_: Any, model: Any, optimizer: Any, folder: Path) -> None:
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model,
        optimizer.optimizer,
        model_state_dict=_stored_weights(model, folder),
        optim_state_dict=torch.load(folder / OPTIMIZER_FILE, weights_only=True),
        options=StateDictOptions(full_state_dict=True),
    )


def _zero_state(accelerator: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
    """Weights gathered; each rank's optimizer shard, gathered as a list, fits this world only."""
    from accelerate.utils import gather_object

    shards = gather_object([optimizer.optimizer.state_dict()])
    return accelerator.get_state_dict(model), {"shards": shards}


def _zero_load(_accelerator: Any, _model: Any, _optimizer: Any, folder: Path) -> None:
    raise UserError(
        f"--strategy deepspeed cannot resume from {folder} yet; use --fresh, or --strategy fsdp, "
        "which resumes"
    )


STRATEGIES = {
    "ddp": Strategy(_ddp, _plain_state, _plain_load, GradientTree),
    "fsdp": Strategy(_fsdp, _sharded_state, _sharded_load, MeanOfWorkers),
    "deepspeed": Strategy(_deepspeed, _zero_state, _zero_load, MeanOfWorkers),
}
