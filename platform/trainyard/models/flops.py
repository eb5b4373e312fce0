"""Model FLOPs utilization: what a model must compute for a row, and what a device can compute at most."""

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import Precision
from trainyard.models.engines.choice import machine
from trainyard.storage import cache_root, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GPU_TERAFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "T4": (65.0, 8.1),
    "V100": (125.0, 15.7),
}
"""Dense peak of NVIDIA's data sheets in half precision and in float32; the first name that fits counts."""

SIZE, ROUNDS = 2048, 5
"""Side of the square matrices whose product is timed, and products of which the fastest counts."""

PEAKS = "peaks.json"
"""In the cache folder: measured peaks in FLOP/s, by processor, threads, number type and torch."""


def training_flops(model: "PreTrainedModel", lengths: NDArray[np.int32]) -> float:
    """FLOPs of training on a row, mean over rows of `lengths` tokens: forward, and twice that backward.

    Counts a multiplication and an addition for each weight of a layer and each token, and the two products
    of attention. Padding counts nothing: it is computed, but of no use.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = (torch.nn.Linear, torch.nn.Conv1d, Conv1D)
    weights = sum(
        module.weight.numel()
        for name, module in model.base_model.named_modules()
        if isinstance(module, layers) and "pooler" not in name  # it reads one token of a row
    )
    config = model.config
    attention = 4 * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
    tokens = lengths.astype(np.float64)
    return float(3 * (2 * weights * tokens + attention * tokens**2).mean())


def peak_flops(device: "torch.device", precision: Precision) -> float:
    """Peak of matrix products on `device` in FLOP/s: a GPU's from the table, else measured once and cached.

    The caller's threads must have nothing else to do.
    """
    import torch

    kind = torch.float32 if precision == "no" else torch.bfloat16
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (half, whole) in GPU_TERAFLOPS.items():
            if known in name:
                return 1e12 * (whole if precision == "no" else half)
    else:
        name = f"{machine()}, {torch.get_num_threads()} threads"
    key = f"{name}, {str(kind).removeprefix('torch.')}, torch {torch.__version__}"
    path = cache_root() / PEAKS
    peaks: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        peaks = json.loads(path.read_text(encoding="utf-8"))
    if key not in peaks:
        peaks[key] = _measured(device, kind)
        with contextlib.suppress(OSError):  # it is measured again then
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, peaks)
    return float(peaks[key])


def _measured(device: "torch.device", kind: "torch.dtype") -> float:
    import torch

    left, right = (torch.ones(SIZE, SIZE, dtype=kind, device=device) for _ in range(2))
    fastest = float("inf")
    for _ in range(1 + ROUNDS):  # the first one starts threads
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * SIZE**3 / fastest
