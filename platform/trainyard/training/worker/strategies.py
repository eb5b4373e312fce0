"""Strategies for sharing a model among workers: one row per --strategy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import accelerate.optimizer
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, GradScalerKwargs
from accelerate.utils import is_lomo_available

from trainyard.config import TrainConfig, scaler_arguments
from trainyard.models import build_accelerator, compute_deterministically
from trainyard.training.worker import fsdp, zero
from trainyard.training.worker.gradients import Gradients, GradientTree
from trainyard.training.worker.optimizer import build_optimizer
from trainyard.training.worker.weights import OPTIMIZER_FILE, Copy, bare, stored_weights, tied


def one_backend(config: TrainConfig) -> str:
    """Name torch's backend of a process group whose tensors are all on GPUs, or all on CPUs."""
    return "nccl" if config.use_gpu else "gloo"


def offload_backend(config: TrainConfig) -> str:
    """Name torch's backend if gradients may be in host memory, which NCCL cannot reduce."""
    return "cpu:gloo,cuda:nccl" if config.use_gpu and config.fsdp_offload else one_backend(config)


@dataclass(frozen=True)
class Strategy:
    """Functions of one --strategy. All processes of a run call each function."""

    prepare: Callable[[TrainConfig, Accelerator, Any], tuple[Any, torch.optim.Optimizer]]
    """(config, accelerator, model) -> the prepared model, and its optimizer."""
    state: Callable[[Any, Any, int, Copy], tuple[dict[str, Any], dict[str, Any]]]
    """(model, optimizer, number of writers, copy) -> what this process writes, copied to host memory.
    These are whole fp32 weights by name, and the optimizer state."""
    load: Callable[[Any, Any, Path], None]
    """(model, optimizer, checkpoint folder): load a stored state into model and optimizer."""
    gradients: type[Gradients]
    """Sum of a step's gradients, over a process's micro-batches and over all processes."""
    shards: bool = True
    """True if it needs a process group even for one process, and may split checkpoints."""
    backend: Callable[[TrainConfig], str] = one_backend
    """Function from the config to torch's backend of the process group."""


def training_accelerator(config: TrainConfig) -> Accelerator:
    """Build the Accelerator for the config's strategy.

    This also creates a missing process group of one, and sets deterministic algorithms on GPUs.
    """
    if config.use_gpu and config.deterministic:
        compute_deterministically()
    strategy = STRATEGIES[config.strategy]
    if strategy.shards and not dist.is_initialized():
        # Tune's process for a one-worker trial has no process group from a launcher.
        dist.init_process_group(
            strategy.backend(config), store=dist.HashStore(), rank=0, world_size=1
        )
    # Uncached, this function searches sys.path for a package twice per step.
    accelerate.optimizer.is_lomo_available = cache(is_lomo_available)
    handlers = [
        # Buffers are constants here (positions): broadcasting them only costs time.
        DistributedDataParallelKwargs(broadcast_buffers=False),
        GradScalerKwargs(**scaler_arguments(config.deepspeed_config)),
    ]
    return build_accelerator(
        config.mixed_precision, use_gpu=config.use_gpu, arguments={"kwargs_handlers": handlers}
    )


def _copies(
    config: TrainConfig, accelerator: Accelerator, model: Any
) -> tuple[Any, torch.optim.Optimizer]:
    if accelerator.device.type == "cpu":
        # Weights in a mapped file start at any address, on which the product with a single row
        # depends in its last bits. Copies start at a cache line in every process.
        for weight in model.parameters():
            weight.data = weight.data.clone()
    prepared, optimizer = accelerator.prepare(model, build_optimizer(config, model))
    return prepared, optimizer


def _copies_state(
    model: Any, optimizer: Any, writers: int, copy: Copy
) -> tuple[dict[str, Any], dict[str, Any]]:
    del writers  # rank 0 writes all
    weights, state = bare(model).state_dict(), optimizer.state_dict()
    for name in tied(bare(model), weights):
        del weights[name]
    moments = {
        index: {key: copy(part) for key, part in parts.items()}
        for index, parts in state["state"].items()
    }
    return {name: copy(tensor) for name, tensor in weights.items()}, {**state, "state": moments}


def _copies_load(model: Any, optimizer: Any, folder: Path) -> None:
    device = next(model.parameters()).device
    bare(model).load_state_dict(stored_weights(bare(model), folder))
    optimizer.load_state_dict(
        torch.load(folder / OPTIMIZER_FILE, map_location=device, weights_only=True)
    )


STRATEGIES = {
    "ddp": Strategy(_copies, _copies_state, _copies_load, GradientTree, shards=False),
    "fsdp": Strategy(
        fsdp.prepare, fsdp.state, fsdp.load, fsdp.ShardedGradients, backend=offload_backend
    ),
    "deepspeed": Strategy(zero.prepare, zero.state, zero.load, zero.EngineGradients),
}
