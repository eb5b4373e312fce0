"""Cores of a forward pass on the CPU, and the one thread that may use several of them.

OpenMP keeps a team of threads for every thread that ever used several cores. Threads of a team wait
by spinning, unless all teams of the process together exceed its cores. Then they sleep and wake
about a hundred times per pass, and a short text takes longer on two cores than on one. So all
passes on several cores run in one thread of the process, and threads that load models end. See
`gomp_managed_threads` in team.c and wait.h of GNU libgomp.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")

_wide_pass = threading.Lock()
"""Lock of the one pass that runs on several cores."""

_this = threading.local()


@cache
def process_threads() -> int:
    """Return the number of cores that torch uses in this process.

    It is read once: each new thread inherits the number that was set last.
    """
    import torch

    return int(torch.get_num_threads())


@cache
def _wide_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="wide")


def run_pass(forward: Callable[[], Result], cores: int) -> Result:
    """Run `forward` on `cores` cores, or on one core while another pass uses several.

    Returns the result of `forward`.
    """
    if cores > 1 and _wide_pass.acquire(blocking=False):
        try:
            return _wide_thread().submit(_run_on, cores, forward).result()
        finally:
            _wide_pass.release()
    return _run_on(1, forward)


def start(work: Callable[[], Result]) -> "Future[Result]":
    """Run `work` in a new thread, which ends with its team of OpenMP threads.

    The thread does not keep the process alive, so one that hangs is lost with it.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future


def _run_on(cores: int, forward: Callable[[], Result]) -> Result:
    import torch

    if getattr(_this, "cores", None) != cores:  # torch keeps the number per thread
        torch.set_num_threads(cores)
        _this.cores = cores
    return forward()
