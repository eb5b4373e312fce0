"""Cores of a forward pass on the CPU, and the one thread that may use several.

OpenMP keeps a team of threads for every thread that ever used several cores. The threads of a team wait
for each other by spinning, unless all teams of a process together exceed the cores. Then they sleep and
are woken about a hundred times in a pass: two cores take longer for a short text than one. So all
passes over several cores run in one thread of the process, and threads that load models end (GNU libgomp:
`gomp_managed_threads` in team.c and wait.h).
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")

_wide_pass = threading.Lock()
"""Held by the one pass that runs over several cores."""

_this = threading.local()


@cache
def process_threads() -> int:
    """Cores of this process: read once, as torch gives each new thread the number that was set last."""
    import torch

    return int(torch.get_num_threads())


@cache
def _wide_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="wide")


def run_pass(forward: Callable[[], Result], cores: int) -> Result:
    """Run `forward` over `cores` cores, or over one while another pass of this process has several."""
    if cores > 1 and _wide_pass.acquire(blocking=False):
        try:
            return _wide_thread().submit(_run_on, cores, forward).result()
        finally:
            _wide_pass.release()
    return _run_on(1, forward)


def run_and_end(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread that ends afterward, together with the team of threads it got."""
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        return thread.submit(work).result()


def _run_on(cores: int, forward: Callable[[], Result]) -> Result:
    import torch

    if getattr(_this, "cores", None) != cores:  # torch keeps the number for each thread
        torch.set_num_threads(cores)
        _this.cores = cores
    return forward()
