"""Messages and progress bars on stderr."""

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_logs: list[tuple[Path, Callable[[], bool]]] = []


def say(sentence: str) -> None:
    """Print one line on stderr, above any progress bar, and append it to the files of `logged`."""
    from tqdm import tqdm

    tqdm.write(sentence, file=sys.stderr)
    for log in _logs:
        _append(*log, sentence)


@contextlib.contextmanager
def logged(path: Path, may_write: Callable[[], bool]) -> Iterator[None]:
    """Append the lines that `say` prints inside the block to a file, with the UTC time of each.

    The start and the end of the block, with its exception if any, are recorded as lines too.

    Args:
        path: The file.
        may_write: Function that is called before each line; False leaves the line out.
    """
    log = path, may_write
    _logs.append(log)
    _append(*log, "started")
    try:
        yield
        _append(*log, "ended")
    except BaseException as error:
        _append(*log, f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        _logs.remove(log)


def _append(path: Path, may_write: Callable[[], bool], sentence: str) -> None:
    if not may_write():
        return
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {sentence}\n"
    # Write errors are ignored: stderr shows the same line, and a full disk must not hide the error
    # being logged. The folder may also be gone: a bucket's local copy is deleted after the run.
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as log:
        log.write(line)


def stage(sentence: str) -> None:
    """Announce the next stage of a job on stderr."""
    say(f"· {sentence}")


def progress_bar(total: int, *, unit: str, title: str, done: int = 0) -> Any:
    """Build a tqdm progress bar on stderr, or a widget in a notebook.

    The bar counts from `done` to `total`. It is redrawn every 0.5 seconds at most on a terminal,
    and every 30 seconds at most in a log file.
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


@contextlib.contextmanager
def quieted(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Drop messages of the logger `name` below `level` inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """End the process without a traceback if the reader of its output has left, as in `| head`.

    Output is flushed at the end of the block, so that the interpreter's exit finds nothing to write.

    Raises:
        SystemExit: The reader of stdout or stderr has left; the status is that of SIGPIPE.
        BrokenPipeError: Another pipe or connection broke.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except BrokenPipeError:
        left = [output for output in (1, 2) if _has_no_reader(output)]
        if not left:
            raise
        for output in left:  # else the interpreter reports the rest of its buffers at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        raise SystemExit(128 + signal.SIGPIPE) from None


def _has_no_reader(output: int) -> bool:
    """Poll a file descriptor: the write end of a pipe without a read end is in error."""
    poll = select.poll()
    poll.register(output, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
