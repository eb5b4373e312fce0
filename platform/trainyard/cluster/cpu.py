"""Thread count and memory allocator settings of a process that computes on CPUs."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h
_KEPT_BYTES = 2**31 - 1  # the largest C int, mallopt's argument type


def claim_processor(threads: int) -> None:
    """Set torch's number of threads, and make malloc reuse the memory of freed tensors.

    By default glibc returns each large freed tensor to the system, which clears the same pages
    again in every step. PyTorch's performance tuning guide preloads another allocator; mallopt(3)
    needs none. Without glibc only the threads are set.
    """
    import torch

    torch.set_num_threads(max(threads, 1))
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has no mallopt
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
