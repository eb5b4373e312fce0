"""Linear layers on AMD processors, computed with oneDNN from weights that are packed once.

Torch computes float32 layers with MKL, which is slow on processors that are not from Intel. It
computes bfloat16 layers with oneDNN, but packs the weights again in every pass. `torch.compile`
makes the same calls for frozen weights (torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

import copy
import platform
from functools import cache
from pathlib import Path
from typing import Any


def pack_linears(model: Any) -> Any:
    """Return a copy of the model whose linear layers run in oneDNN; its weights must not change.

    The copy shares the original weights, which some architectures read directly. Their pages are
    mapped from the model's file, so the system can reclaim unread pages.

    Returns:
        The copy. On other processors, or for dtypes that oneDNN does not pack, the model itself.
    """
    import torch

    if model.device.type != "cpu" or model.dtype not in _packable():
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    found = copy.deepcopy(model, shared)
    with torch.inference_mode():
        for layer in found.modules():
            if type(layer) is torch.nn.Linear:
                layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
                layer.__class__ = _packed_linear()
    return found


@cache
def _packable() -> frozenset[Any]:
    import torch

    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return frozenset()
    if "AuthenticAMD" not in processor or platform.machine() != "x86_64":
        return frozenset()
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    in_bfloat16 = {torch.bfloat16} if torch.cpu._is_avx512_bf16_supported() else set()
    return frozenset({torch.float32} | in_bfloat16)


@cache
def _packed_linear() -> Any:
    import torch

    class PackedLinear(torch.nn.Linear):
        """Linear layer that computes with `packed`, its weight in oneDNN's layout."""

        packed: Any

        def forward(self, given: Any) -> Any:
            flat = given.reshape(-1, self.in_features)
            rows = len(flat)
            if more := grid(rows) - rows:
                flat = torch.nn.functional.pad(flat, (0, 0, 0, more))
            found = torch.ops.mkldnn._linear_pointwise(flat, self.packed, self.bias, "none", [], "")
            return found[:rows].view(*given.shape[:-1], self.out_features)

    return PackedLinear


def grid(rows: int) -> int:
    """Return the smallest number of the grid that is at least `rows`.

    The grid holds 0, 1, the multiples of 8 up to 64, and four numbers per further power of two.
    OneDNN compiles a kernel of about 0.5 MiB for each number of rows, and never frees half of its
    memory. The grid bounds how much memory a process loses this way.
    """
    if rows <= 1:
        return rows
    step = max(8, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step
