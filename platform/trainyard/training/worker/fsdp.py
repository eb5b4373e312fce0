"""--strategy fsdp: PyTorch's FSDP2. Every worker holds a part of each weight, gradient and moment.

Weights are gathered, and gradients reduced, in fp32, so autocast computes as on unsharded models.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainyard.config import TrainConfig
from trainyard.training.worker.gradients import Gradients
from trainyard.training.worker.optimizer import build_optimizer
from trainyard.training.worker.weights import Copy, owners, stored_moments, stored_weights, tied


class ShardedGradients(Gradients):
    """Gradients that stay unsharded until the last micro-batch of a step sums them in shards."""

    def __init__(self, accelerator: Accelerator, model: Any) -> None:
        super().__init__(accelerator, model)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # FSDP's default is the mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    @contextmanager
    def add(self, turn: int, turns: int) -> Iterator[None]:
        """Wrap the two passes of a micro-batch; the last one of a step reduces the gradients.

        Args:
            turn: Index of the micro-batch among this process's micro-batches of the step.
            turns: Number of these micro-batches.
        """
        self._model.set_requires_gradient_sync(turn + 1 == turns)
        yield


def prepare(
    config: TrainConfig, accelerator: Accelerator, model: Any
) -> tuple[Any, torch.optim.Optimizer]:
    """Shard a whole model layer by layer; return it with an optimizer over its shards."""
    device = accelerator.device.type
    mesh = init_device_mesh(device, (accelerator.num_processes,))
    offload = (
        CPUOffloadPolicy(pin_memory=device != "cpu") if config.fsdp_offload else OffloadPolicy()
    )
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload)
    for buffer in model.buffers():
        buffer.data = buffer.to(accelerator.device)
    prepared = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    return prepared, accelerator.prepare_optimizer(
        build_optimizer(config, prepared), device_placement=False
    )


def layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the repeated layers of a model: members of its outermost ModuleLists of a single class.

    Layers that share a parameter with another module are left out, so they stay in the outer shard.
    """
    owners: dict[torch.nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    for child in model.children():
        if isinstance(child, torch.nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            yield from (layer for layer in child if all(owners[p] == 1 for p in layer.parameters()))
        else:
            yield from layers(child)


def state(
    model: Any, optimizer: Any, writers: int, copy: Copy
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gather each weight and its moments on the worker that writes them, see `Strategy.state`."""
    weights, state = get_state_dict(model, optimizer.optimizer)
    for name in tied(model, weights):
        del weights[name]
    owned = owners({name: tensor.numel() for name, tensor in weights.items()}, writers)
    own, moments = dict[str, Any](), dict[str, Any]()
    for name, weight in weights.items():
        entry = {"": weight, **state["state"].get(name, {})}
        whole = {key: _whole(part) for key, part in entry.items()}  # a collective operation
        if owned[name] == dist.get_rank():
            copies = {key: copy(part) for key, part in whole.items()}
            own[name] = copies.pop("")
            moments[name] = copies
    return own, {**state, "state": {name: found for name, found in moments.items() if found}}


def _whole(tensor: Any) -> Any:
    """Return a whole tensor, gathered from all workers if it is sharded."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()
    return tensor


def load(model: Any, optimizer: Any, folder: Path) -> None:
    """Load this worker's shards of a checkpoint, which any number of workers may have written.

    Raises:
        DamagedRun: The stored weights do not match the model's names.
    """
    set_state_dict(
        model,
        optimizer.optimizer,
        model_state_dict=stored_weights(model, folder),
        optim_state_dict=stored_moments(folder),
        options=StateDictOptions(full_state_dict=True),
    )
    for moments in optimizer.optimizer.state.values():  # on CPUs, views of the checkpoint's files
        for key, part in moments.items():
            moments[key] = part.clone()
