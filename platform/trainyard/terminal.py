"""Messages and progress bars on stderr."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def quieted(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Drop a library's log messages below `level` inside the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
