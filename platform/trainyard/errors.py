"""Exceptions that are not bugs: conditions that the user can fix, and a requested stop."""

import copy
import errno
from typing import Self

STORAGE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Values of `OSError.errno` for storage that is full, over its quota, read-only or failing."""


class UserError(Exception):
    """A mistake or a condition that the user can fix.

    The message is one sentence: the condition found, the condition expected, and the fix. A command
    prints the message and exits with status 2, without a traceback.

    Args:
        problem: Condition found and condition expected; the whole sentence if `remedy` is empty.
        remedy: Fix for the problem, separate so that a caller can offer a different one.
    """

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem

    def within(self, context: str) -> Self:
        """Return a copy of the error whose `problem` is prefixed with `context`."""
        found = copy.copy(self)
        found.problem = f"{context}{self.problem}"
        return found


class Diverged(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """Loss, gradients or model outputs are not finite, because of the config."""


class DamagedRun(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """Stored files of a run, sweep or suite are damaged; --fresh starts it over."""


class SupersededError(UserError):
    """Another driver or attempt has taken over the run: this process must stop writing to it."""


class HeldError(UserError):
    """Another driver holds the lease of the run, sweep or suite: this process must not write."""


class Interrupted(Exception):  # noqa: N818 (a requested stop, not an error)
    """The run stopped on request; everything saved before the stop is kept.

    Attributes:
        exit_status: 128 plus the signal's number, as a shell reports it; that of SIGTERM if a
            callback or a request in a file stopped the run.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def storage_fault(error: OSError) -> str:
    """Describe an error of `STORAGE_FAULTS` in a sentence for the user: reason, path and fix."""
    path = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{path}; make room or fix the disk, then run the same command again"


def one_line(message: object, longest: int | None = None) -> str:
    """Collapse a message to one line of at most `longest` characters, cut before a word."""
    text = " ".join(str(message).split())
    if longest is None or len(text) <= longest:
        return text
    whole = text[: longest - 1].rsplit(" ", 1)[0]
    return f"{whole[: longest - 2]} …"
