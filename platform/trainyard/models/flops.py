"""Model FLOPs utilization: FLOPs that a row needs, and peak FLOP/s of a device."""

import contextlib
import json
import math
import time
from typing import TYPE_CHECKING

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
"""TFLOP/s. Dense peaks of NVIDIA's data sheets in half precision and in float32. The first key that
occurs in the device's name is used."""

SIZES, ROUNDS = (512, 1024, 2048), 5
"""Sides of the square matrices that are multiplied, and number of timed products after the first."""
SLOW = 0.25
"""Seconds of a product after which no larger one is timed: bfloat16 has no instructions on some CPUs,
where a product of 2048 takes 20 seconds."""

PEAKS = "peaks.json"
"""File of measured peaks in FLOP/s, in the cache folder: by processor, threads, dtype and torch."""

_not_kept: dict[str, float] = {}
"""Peaks that this process measured while the machine was busy, by the keys of PEAKS."""


def training_flops(model: "PreTrainedModel", lengths: NDArray[np.int32]) -> float:
    """Return the mean FLOPs per training row: forward, plus a backward pass of twice the cost.

    Counts a multiplication and an addition for each weight and token, and the two matrix products
    of attention (Kaplan et al. 2020). Padding is not counted. `lengths` holds the tokens of each
    row, [rows].
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = (torch.nn.Linear, torch.nn.Conv1d, Conv1D)
    weights = sum(
        module.weight.numel()
        for name, module in model.base_model.named_modules()
        if isinstance(module, layers) and "pooler" not in name  # the pooler reads one token
    )
    config = model.config
    attention = 4 * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
    tokens = lengths.astype(np.float64)
    return float(3 * (2 * weights * tokens + attention * tokens**2).mean())


def peak_flops(
    device: "torch.device", precision: Precision, *, reached: float = 0.0, keep: bool = True
) -> float:
    """Return the peak FLOP/s of matrix products on `device`.

    The peak of a known GPU comes from GPU_TERAFLOPS. Any other peak is measured once and cached in
    PEAKS. Other work on the machine at this time lowers the measured peak.

    Args:
        device: Device of this process.
        precision: Precision of the products.
        reached: FLOP/s that a run reached on the device. A cached peak below it was measured on a
            busy machine, so it is measured again, and the larger value is cached.
        keep: False while the machine is busy: a newly measured peak is not cached on disk.
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
    peaks: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):  # entries of a damaged file are measured again
            floats = {name: x for name, x in found.items() if isinstance(x, float)}
            peaks = {name: x for name, x in floats.items() if math.isfinite(x)}
    peak = max(peaks.get(key, 0.0), _not_kept.get(key, 0.0))
    if peak <= reached:
        peak = max(peak, _measured(device, kind))
        if not keep:
            _not_kept[key] = peak
            return peak
        with contextlib.suppress(OSError):  # without a cache, each process measures
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**peaks, key: peak})
    return peak


def _measured(device: "torch.device", kind: "torch.dtype") -> float:
    peak = 0.0
    for size in SIZES:
        seconds = _fastest_product(size, device, kind)
        peak = max(peak, 2.0 * size**3 / seconds)
        if seconds > SLOW:
            break
    return peak


def _fastest_product(size: int, device: "torch.device", kind: "torch.dtype") -> float:
    """Return the seconds of the fastest product of two matrices with `size` rows and columns."""
    import torch

    left, right = (torch.ones(size, size, dtype=kind, device=device) for _ in range(2))
    fastest = math.inf
    for _ in range(1 + ROUNDS):  # the first product starts threads
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - began)
    return fastest
