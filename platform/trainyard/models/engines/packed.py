"""Linear layers on a CPU of AMD's, computed by oneDNN from weights that are packed once.

There torch leaves float32 to MKL, which is slow on processors that are not Intel's: oneDNN takes two
fifths of its time by AVX-512 (Zen 5), four fifths by AVX2. In bfloat16 torch has oneDNN anyway, but packs
the weights anew in every pass. `torch.compile` makes the same calls when weights are frozen
(torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

import copy
import platform
from functools import cache
from pathlib import Path
from typing import Any


def pack_linears(model: Any) -> Any:
    """Copy a model so that oneDNN computes its linear layers; its weights must stay constant.

    The copy shares the model's own weights, which some architectures read. They are pages of the
    model's file, which the system reclaims while they are not read.

    Returns:
        The model itself on other processors, and with weights of a type that oneDNN does not pack.
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
        """A `torch.nn.Linear` with `packed`, its weight as oneDNN reads it."""

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
    """Smallest padded number of rows that is at least `rows`.

    It has four steps per power of two from 8 on, and 1. oneDNN compiles a kernel of about 0.5 MiB
    for every number of rows, and never frees half of it. In 2,000 mixed batches a process grew by
    1.5 GB without this grid, and by 0.4 GB with it, as with MKL.
    """
    if rows <= 1:
        return rows
    step = max(8, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step
