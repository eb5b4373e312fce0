"""Turns of the processes on one node: of those that want a turn, one at a time has it."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

MEMORY_SECONDS = 120.0
"""Maximum seconds that a load waits for `memory_turn`; then it continues without one.

The load that has the turn may hang, and its thread cannot be stopped.
"""

POLL_SECONDS = 0.1
"""Seconds between two attempts to get `memory_turn`."""

log = logging.getLogger("ray.serve.trainyard")


def turn_file(name: str) -> Path:
    """Return the path of the lock file of a turn that the processes of this user take."""
    return Path(tempfile.gettempdir()) / f"trainyard-{name}-{os.getuid()}"


class Turn:
    """Turn of one holder, by a lock on a file; the kernel gives it back when the process ends.

    Each object is a holder, also of several in one process. On file systems without locks, and if
    the file cannot be opened, each holder has the turn.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        try:
            flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            self._warn(error)

    def take(self) -> bool:
        """Take the turn without waiting; return False while another holder has it."""
        if self._file is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                self._warn(error)
        return True

    def close(self) -> None:
        """Give the turn back if this holder has it, also if a forked child has the file open."""
        if self._file is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = None

    def _warn(self, error: OSError) -> None:
        # Without turns, loads only need more memory at the same time.
        log.warning("models of this node do not load in turn: %s: %s", self._path, error)


@contextmanager
def memory_turn() -> Iterator[None]:
    """Hold the node's turn to check the free memory and to load a model.

    Two loads that check at the same time would both find the same memory free. Call this in a
    thread: it waits up to `MEMORY_SECONDS`.
    """
    until = time.monotonic() + MEMORY_SECONDS
    with closing(Turn(turn_file("memory"))) as turn:
        while not turn.take():
            if time.monotonic() >= until:
                log.warning(
                    "another model of this node loads for more than %.0f s; this one does not wait",
                    MEMORY_SECONDS,
                )
                break
            time.sleep(POLL_SECONDS)
        yield
