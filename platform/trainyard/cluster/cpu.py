"""How a process uses the CPU it computes on: threads, and memory that it keeps."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_KEPT_BYTES = 2**31 - 1  # mallopt takes an int


def claim_processor(threads: int) -> None:
    """Let torch use `threads` threads, and keep the memory of freed tensors for the next ones.

    The GNU allocator gives every large tensor back to the system when it is freed, and the system
    then clears the same pages again for the next step: 5 to 10 % of a training step on a CPU.
    (PyTorch's performance tuning guide says the same, and preloads another allocator; `mallopt`
    does it from inside, mallopt(3).) Elsewhere than on Linux with glibc only the threads are set.
    """
    import torch

    torch.set_num_threads(max(threads, 1))
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
