"""--strategy deepspeed: ZeRO stage 2 shards gradients and moments, stage 3 the weights too.

DeepSpeed computes in fp32. Autocast and the loss scale are Accelerate's, as with every strategy.
Checkpoints hold whole fp32 weights, and moments by parameter name, so every stage and number of
workers can read them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainyard.config import TrainConfig, merge_deepspeed_json
from trainyard.training.worker.gradients import Gradients
from trainyard.training.worker.optimizer import build_optimizer
from trainyard.training.worker.weights import (
    Copy,
    bare,
    owners,
    stored_moments,
    stored_weights,
    tied,
)

MOMENTS = ("exp_avg", "exp_avg_sq")


def prepare(
    config: TrainConfig, accelerator: Accelerator, model: Any
) -> tuple[Any, torch.optim.Optimizer]:
    """Shard a whole model with DeepSpeed; return DeepSpeed's engine and the optimizer."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it even of one process
    import deepspeed

    model = accelerator.prepare_model(model, evaluation_mode=True)
    optimizer = build_optimizer(config, model)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings(config), dist_init_required=False
    )
    return engine, optimizer


@contextmanager
def process_restored() -> Iterator[None]:
    """Undo at the end what DeepSpeed leaves behind, so that later work of the process has equal bits.

    Stage 3 replaces torch's `linear` by one that rounds before it adds the bias. `prepare` sets
    LOCAL_RANK, with which Accelerate wraps the model of a single process in DDP.
    """
    linear, rank = torch.nn.functional.linear, os.environ.get("LOCAL_RANK")
    try:
        yield
    finally:
        torch.nn.functional.linear = linear
        if rank is None:
            os.environ.pop("LOCAL_RANK", None)


def settings(config: TrainConfig) -> dict[str, Any]:
    """Build DeepSpeed's config from the flags; --deepspeed-config adds settings without a flag."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.use_gpu}
    ours = {
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,  # micro-batches are weighted and summed by the loop
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on CPUs, without a compiler
    }
    return merge_deepspeed_json(ours, config.deepspeed_config)


class EngineGradients(Gradients):
    """Gradients inside DeepSpeed's engine, which reduces and clips gradients and skips steps."""

    def __init__(self, accelerator: Accelerator, model: Any) -> None:
        super().__init__(accelerator, model)
        if accelerator.scaler is not None:  # the first use makes the scale a tensor
            accelerator.scaler.scale(torch.zeros((), device=accelerator.device))

    @contextmanager
    def add(self, turn: int, turns: int) -> Iterator[None]:
        """Wrap micro-batch `turn` (from 0) of `turns`; the last one completes the gradients."""
        self._model.optimizer.override_loss_scale(self._loss_scale())
        self._model.set_gradient_accumulation_boundary(turn + 1 == turns)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this process's share of the step's loss, a scalar."""
        self._model.backward(loss)

    def step(self, optimizer: Any, max_norm: float) -> bool:  # noqa: ARG002
        """Take the engine's step, and update the loss scale as torch's `GradScaler` does.

        The engine clips by the config's norm, so `max_norm` is ignored. Returns False if gradients
        are not finite in fp32 or bf16, which have no loss scale to reduce.
        """
        # The engine averages over workers. Dividing the scale by their number makes the mean a sum.
        scale = self._loss_scale() / self._accelerator.num_processes
        self._model.optimizer.override_loss_scale(scale)
        self._model.step()
        overflow, scaler = self._model.optimizer.overflow, self._accelerator.scaler
        if scaler is None:
            return not overflow
        found = scaler.state_dict()
        grown = 0 if overflow else found["_growth_tracker"] + 1
        if overflow:
            found["scale"] *= found["backoff_factor"]
        elif grown == found["growth_interval"]:
            found["scale"], grown = found["scale"] * found["growth_factor"], 0
        scaler.load_state_dict({**found, "_growth_tracker": grown})
        return True

    def _loss_scale(self) -> float:
        scaler = self._accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())


def state(
    model: Any, optimizer: Any, writers: int, copy: Copy
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gather each weight and its moments on the worker that writes them, see `Strategy.state`."""
    step = max((float(moments["step"]) for moments in optimizer.state.values()), default=0.0)
    module = bare(model)
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    stored = module.state_dict().keys() - tied(module, tensors)
    owned = owners({name: _shape(tensors[name]).numel() for name in stored}, writers)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        if not (parameter.requires_grad and step):
            continue  # before the first step there are no moments
        for key in MOMENTS:
            part, start = _part(model.optimizer, optimizer, parameter, key)
            whole = torch.zeros(_shape(parameter).numel(), device=model.device)
            whole.narrow(0, start, len(part)).copy_(part)
            dist.all_reduce(whole)  # exact: other workers hold zeros there
            if owned.get(name, 0) == dist.get_rank():
                found.setdefault(name, {})[key] = copy(whole.view(_shape(parameter)))
    own = {}
    for name in sorted(stored):
        with _gathered(tensors[name]) as whole:
            if owned[name] == dist.get_rank():
                own[name] = copy(whole, at_once=True)  # DeepSpeed frees it on another stream
    return own, {"state": found, "step": step}


@contextmanager
def _gathered(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the whole tensor; all workers gather a parameter of stage 3."""
    if not hasattr(tensor, "ds_id"):
        yield tensor
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        yield tensor


def load(model: Any, optimizer: Any, folder: Path) -> None:
    """Load this worker's part of a checkpoint, which any stage and worker count may have written.

    Raises:
        DamagedRun: The stored weights do not match the model's names.
    """
    stored = stored_moments(folder)
    _load_weights(model, stored_weights(bare(model), folder))
    zero = model.optimizer
    for flat in (
        zero.fp32_partitioned_groups_flat
        if _is_stage_3(model)
        else zero.single_partition_of_fp32_groups
    ):
        optimizer.state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS}
        optimizer.state[flat]["step"] = torch.tensor(stored["step"], device=flat.device)
    parameters = dict(bare(model).named_parameters())
    for name, moments in stored["state"].items():
        for key, whole in moments.items():
            part, start = _part(zero, optimizer, parameters[name], key)
            part.copy_(whole.flatten().narrow(0, start, len(part)))


def _is_stage_3(model: Any) -> bool:
    return bool(model.zero_optimization_partition_weights())


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # stage 3 leaves an empty parameter


def _part(zero: Any, optimizer: Any, parameter: Any, key: str) -> tuple[torch.Tensor, int]:
    """Return this worker's part of a parameter's moment `key` as a view of the optimizer state.

    DeepSpeed's own accessors fail for ZeRO-2 in fp32, and for ZeRO-3 with a padded last part.

    Returns:
        The view, and the index of its first element in the flattened moment.
    """
    if hasattr(parameter, "ds_id"):
        group, place, size = zero.grad_position[zero.get_param_id(parameter)]
        flat = optimizer.state[zero.fp32_partitioned_groups_flat[group]][key]
        start = min(size * dist.get_rank(), parameter.ds_numel)  # more workers than elements
        return flat.narrow(0, place, min(size, parameter.ds_numel - start)), start
    mapping = parameter._hp_mapping
    if mapping is None:  # all of it belongs to other workers
        return torch.empty(0, device=parameter.device), 0
    flat = optimizer.state[zero.single_partition_of_fp32_groups[mapping.param_group_index]][key]
    inside = mapping.hp_fragment_address
    return flat.narrow(0, inside.start, inside.numel), mapping.lp_fragment_address.start


def _load_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    module = bare(model)
    if not _is_stage_3(model):
        module.load_state_dict(weights)
    else:
        import deepspeed

        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in weights and hasattr(tensor, "ds_id"):
                with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
                    if dist.get_rank() == 0:
                        tensor.data.copy_(weights[name])
            elif name in weights:
                tensor.data.copy_(weights[name])
    model.optimizer.refresh_fp32_params()
