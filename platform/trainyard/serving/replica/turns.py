"""Turns of the processes on one node: of those that want a turn, one at a time has it."""

import fcntl
import logging
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

MEMORY_SECONDS = 120.0
"""Seconds after which a load that holds `memory_turn` counts as hung; the others continue.

Its thread cannot be stopped.
"""

POLL_SECONDS = 0.1
"""Seconds between two attempts to get `memory_turn`."""

_TIME = struct.Struct("<d")

log = logging.getLogger("ray.serve.trainyard")


class NotNeededError(Exception):
    """Exception for a load that was not begun, because its model is no longer wanted."""


def turn_file(name: str) -> Path:
    """Return the path of the lock file of a turn that the processes of this user take."""
    return Path(tempfile.gettempdir()) / f"trainyard-{name}-{os.getuid()}"


class Turn:
    """Turn of one holder, by a lock on a file; the kernel gives it back when the process ends.

    Each object is a holder, also of several in one process. On file systems without locks, and if
    the file cannot be opened, each holder has the turn. The file holds when it was taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        try:
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            self._warn(error)

    def take(self) -> bool:
        """Take the turn without waiting; return False while another holder has it."""
        if self._file is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(self._file, _TIME.pack(time.monotonic()), 0)
            except BlockingIOError:
                return False
            except OSError as error:
                self._warn(error)
        return True

    def taken_at(self) -> float | None:
        """Return the `time.monotonic()` at which the last holder took the turn; None if unknown."""
        content = b"" if self._file is None else os.pread(self._file, _TIME.size, 0)
        if len(content) < _TIME.size:
            return None
        (seconds,) = _TIME.unpack(content)
        return float(seconds) if seconds <= time.monotonic() else None  # before the node's restart

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
def memory_turn(device: str, is_needed: Callable[[], bool]) -> Iterator[None]:
    """Hold the node's turn to check the free memory of a device and to load a model.

    Two loads that check at the same time would both find the same memory free. While a load that
    hangs has the turn, the others take a second one. If two loads hang, the others do not wait. Call
    this in a thread.

    Args:
        device: Name of the device, unique on the node.
        is_needed: Returns False once the model is no longer wanted.

    Raises:
        NotNeededError: The model is no longer wanted.
    """
    with (
        closing(Turn(turn_file(f"memory-{device}"))) as first,
        closing(Turn(turn_file(f"memory-{device}-late"))) as second,
    ):
        for turn in (first, second):
            if _take_unless_hung(turn, is_needed):
                break
            log.warning(
                "another model of this node loads for more than %.0f s; this one does not wait",
                MEMORY_SECONDS,
            )
        _check(is_needed)
        yield


def _take_unless_hung(turn: Turn, is_needed: Callable[[], bool]) -> bool:
    """Wait for a turn; return False if its holder has had it for `MEMORY_SECONDS`."""
    began = time.monotonic()
    before: float | None = None
    while not turn.take():
        taken_at = turn.taken_at() or began
        # A holder writes the time after it got the lock, so a time that is read once may be old.
        if taken_at == before and time.monotonic() >= taken_at + MEMORY_SECONDS:
            return False
        before = taken_at
        _check(is_needed)
        time.sleep(POLL_SECONDS)
    return True


def _check(is_needed: Callable[[], bool]) -> None:
    if not is_needed():
        raise NotNeededError
