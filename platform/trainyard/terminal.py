"""The terminal of a run: sentences and one bar on stderr, and what Ctrl-C and SIGTERM mean."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from trainyard.errors import Interrupted


def say(sentence: str) -> None:
    """One line for people, without breaking a bar that is being shown."""
    from tqdm import tqdm

    tqdm.write(sentence, file=sys.stderr)


class StopSignals:
    """SIGTERM and Ctrl-C: save and stop while training, stop at once before it.

    `ray job stop` sends SIGTERM, and SIGKILL three seconds later (RAY_JOB_STOP_WAIT_TIME_S).
    Only the main thread can take signals; elsewhere, as in a trial of a sweep, this does nothing.
    `exit_status` is 128 plus the number of the signal that came, as a shell reports it; without
    one, when the file alone asked for the stop, SIGTERM's.
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
        """From here a signal asks the workers to save, instead of raising."""
        self._install()  # Ray installs a SIGTERM handler of its own when it starts
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
