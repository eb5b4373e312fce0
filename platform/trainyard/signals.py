"""Handling of SIGTERM and Ctrl-C: save a checkpoint, stop the job, and report its exit status."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from trainyard.errors import Interrupted
from trainyard.terminal import say


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
        self.exit_status = 128 + signal.SIGTERM
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._request.unlink(missing_ok=True)
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        self._request.unlink(missing_ok=True)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Make signals inside the block request a checkpoint instead of raising Interrupted."""
        self._install()  # Ray replaces the SIGTERM handler when it starts
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def _handle(self, number: int, _: Any) -> None:
        self.exit_status = 128 + number
        if not self._training:
            raise Interrupted("no step was under way; what is saved is kept", self.exit_status)
        if self._request.exists():
            raise Interrupted(
                "at once, by a second signal; the last checkpoint is kept", self.exit_status
            )
        self._request.touch()
        say("saving a checkpoint, then stopping (again to stop at once)")
