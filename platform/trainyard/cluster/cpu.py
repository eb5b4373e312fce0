"""Threads and memory of a process that computes on CPUs."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_KEPT_BYTES = 2**31 - 1  # mallopt takes an int


def claim_processor(threads: int) -> None:
    """Let torch use `threads` threads, and keep the memory of freed tensors for the next ones.

    The GNU allocator returns every freed large tensor to the system, which then clears the same pages
    again for the next step: 5 to 10 % of a training step on a CPU. PyTorch's performance tuning guide
    preloads another allocator; mallopt(3) needs none. Without glibc only the threads are set.
    """
    import torch

    torch.set_num_threads(max(threads, 1))
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
