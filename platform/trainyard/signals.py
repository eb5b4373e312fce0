"""Handling of SIGTERM and Ctrl-C: save a checkpoint, stop the job, and report its exit status."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

from trainyard.errors import Interrupted
from trainyard.terminal import say

ONE_SIGNAL_SECONDS = 1.0
"""Signals within this time count as one: `timeout` sends one to the process, one to its group."""


class Terminated(KeyboardInterrupt):
    """SIGTERM in a job that ends by it as by Ctrl-C."""


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt in the main thread inside the block, and SIGTERM Terminated.

    The main thread must call this. A shell lets jobs in the background ignore Ctrl-C; they obey it,
    too. Signals within `ONE_SIGNAL_SECONDS` raise once, so the second does not break off the end.
    """
    raised, last = -math.inf, 0

    def end(number: int, _: object) -> None:
        nonlocal raised, last
        if time.monotonic() - raised < ONE_SIGNAL_SECONDS:
            return
        raised, last = time.monotonic(), number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Terminated:
        raise
    except KeyboardInterrupt as stop:
        if last == signal.SIGTERM:  # `ray.get` raises it in place of the handler's
            raise Terminated from stop
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def wait_for_signal() -> NoReturn:
    """Wait in the main thread until a signal's handler raises.

    It wakes up every half second, because not every signal ends a wait: one that arrives in another
    thread, or just before the wait begins, reaches its handler only when the main thread wakes up.
    """
    while True:
        time.sleep(0.5)


class StopSignals:
    """Handle SIGTERM and Ctrl-C inside the block.

    During training, a signal requests a checkpoint and a stop. A second signal, or a signal outside
    training, raises Interrupted at once. `ray job stop` sends SIGTERM, and SIGKILL three seconds
    later (RAY_JOB_STOP_WAIT_TIME_S). Only the main thread can handle signals: in other threads, as
    in a trial of a sweep, no handler is installed.

    Args:
        request: File whose existence requests a checkpoint and a stop; removed at entry and exit.

    Attributes:
        exit_status: 128 plus the number of the received signal, as a shell reports it. Without a
            signal, it is that of SIGTERM.
    """

    def __init__(self, request: Path) -> None:
        self._request = request
        self._training = False
        self._requested = 0.0
        self.exit_status = 128 + signal.SIGTERM
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._request.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._request.unlink(missing_ok=True)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Make signals inside the block request a checkpoint instead of raising Interrupted."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def _handle(self, number: int, _: Any) -> None:
        self.exit_status = 128 + number
        if not self._training:
            raise Interrupted("no step was under way; what is saved is kept", self.exit_status)
        if self._request.exists():
            if time.monotonic() - self._requested < ONE_SIGNAL_SECONDS:
                return
            raise Interrupted(
                "at once, by a second signal; the last checkpoint is kept", self.exit_status
            )
        self._request.touch()
        self._requested = time.monotonic()
        say("saving a checkpoint, then stopping (again to stop at once)")
