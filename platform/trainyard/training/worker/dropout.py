"""Random masks of dropout on CPUs, drawn in about a fifth of PyTorch's time.

PyTorch draws one number of its Mersenne Twister for each element of a mask, in one thread. That is a
tenth of the time of a training step. `fast_masks` replaces the operator that draws the masks, which
all kinds of dropout call, in attention too. An element takes 16 bits of numpy's SFC64 (Doty-Humphrey
2013, https://pracrand.sourceforge.net/RNG_engines.txt). The seed comes from PyTorch's generator, so
a mask still depends on the seed of its micro-batch and on its place in the model only.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CHUNK = 2**17
"""Elements that are drawn at once, so that their bits stay in the processor's cache."""


@contextmanager
def fast_masks() -> Iterator[None]:
    """Draw the masks of CPU tensors by `draw_mask` inside the block, in this process."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():  # PyTorch warns of the replacement
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            library.impl("bernoulli_.float", draw_mask, "CPU")
        yield


def draw_mask(
    mask: torch.Tensor, p: float = 0.5, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Set each element of `mask` to 1 with probability `p`, else to 0; return `mask`.

    An element is 1 if its 16 bits are below a threshold. Each call rounds 65,536 * `p` up or down at
    random, so the probability is exactly `p`. Elements are drawn in the order of their indices.

    Args:
        mask: Tensor of any shape and floating-point or integer type, on the CPU.
        p: Probability, from 0 to 1.
        generator: Source of the seed. Default: PyTorch's generator of the CPU.
    """
    seed, rest = torch.empty(2, dtype=torch.int64).random_(generator=generator).tolist()
    threshold = math.floor(65536 * p + rest / 2**63)
    bits = np.random.SFC64(seed)
    flat = mask.view(-1) if mask.is_contiguous() else torch.empty(mask.numel(), dtype=mask.dtype)
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK]
        drawn = bits.random_raw(-(-len(chunk) // 4)).view(np.uint16)[: len(chunk)]
        if chunk.dtype == torch.bfloat16:  # unknown to numpy: the bits of 1 are those of 16256
            ones = chunk.view(torch.int16).numpy()
            np.multiply(drawn < threshold, np.int16(16256), out=ones)
        else:
            np.less(drawn, threshold, out=chunk.numpy(), casting="unsafe")
    return mask if mask.is_contiguous() else mask.copy_(flat.view(mask.shape))
