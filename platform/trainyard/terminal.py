"""Messages on stderr, and the handling of Ctrl-C and SIGTERM."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from trainyard.errors import Interrupted

_logs: list[Path] = []


def say(sentence: str) -> None:
    """Print one line for people on stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(sentence, file=sys.stderr)
    for path in _logs:
        _append(path, sentence)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append the lines of `say` to a file, each after its time in UTC, and how the block ends."""
    _logs.append(path)
    _append(path, "started")
    try:
        yield
        _append(path, "ended")
    except BaseException as error:
        _append(path, f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        _logs.remove(path)


def _append(path: Path, sentence: str) -> None:
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {sentence}\n"
    # The job says the same on stderr. A full disk must not replace the error that is logged, and the
    # local copy of a run in a bucket is deleted at its end.
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as log:
        log.write(line)


def stage(sentence: str) -> None:
    """Name the next step of a job on stderr, so that no job is silent while it works."""
    say(f"· {sentence}")


def progress_bar(total: int, *, unit: str, title: str, done: int = 0) -> Any:
    """Build a tqdm bar on stderr with the time left; in a notebook it is a widget.

    A log file gets a line now and then, a terminal a moving bar.
    """
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=title,
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


class StopSignals:
    """Handle SIGTERM and Ctrl-C: save and stop during training, stop at once before it.

    `ray job stop` sends SIGTERM, and SIGKILL three seconds later (RAY_JOB_STOP_WAIT_TIME_S).
    Only the main thread can handle signals; elsewhere, as in a trial of a sweep, this does nothing.

    Attributes:
        exit_status: 128 plus the number of the received signal, as a shell reports it; SIGTERM's where
            the file alone requested the stop.
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
        """Make a signal request a checkpoint from the workers, instead of raising."""
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
