"""Set up the device, precision, process group, determinism and seeds of a process."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainyard.config import Precision

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def build_accelerator(
    precision: Precision, *, use_gpu: bool, arguments: Mapping[str, Any] | None = None
) -> "Accelerator":
    """Build Accelerate's device, precision and process group for this worker.

    `arguments` are further arguments of `Accelerator`, from a strategy that wraps the trained
    model.

    Raises:
        RuntimeError: Accelerate does not see the process group of the launcher. On CPU workers, it
            would silently train without synchronizing gradients.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps the first settings of a process; one process can run many trials.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=not use_gpu, mixed_precision=precision, **(arguments or {}))
    group = torch.distributed
    expected = group.get_world_size() if group.is_available() and group.is_initialized() else 1
    if accelerator.num_processes != expected:
        raise RuntimeError(
            f"Accelerate sees {accelerator.num_processes} processes, the launcher made {expected}: "
            "gradients would not be synchronized"
        )
    return accelerator


def compute_deterministically() -> None:
    """Make CUDA computations bit-exact across runs. Call this before the process uses cuBLAS."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def seed_generator(device: "torch.device", seed: int) -> None:
    """Seed the random number generators of the CPU and, for CUDA, of this process's current GPU.

    `torch.manual_seed` would seed all kinds of devices, which is slow enough to matter for each
    micro-batch. For devices other than CPUs and CUDA GPUs, this calls it.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)  # the current device is the one of this process
    elif device.type != "cpu":
        torch.manual_seed(seed)
