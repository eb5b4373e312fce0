"""Exceptions that are not bugs: a mistake that the user can fix, and a requested stop."""

import copy
import errno
from typing import Self

STORAGE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Error numbers of a disk that is full, over its quota, read-only or broken: no bug of ours."""


class UserError(Exception):
    """A mistake or a condition that the user can fix.

    The message is one sentence: what was found, what was expected, how to fix it. Jobs print it and
    exit with status 2, without a traceback; a Python caller gets it as an exception.

    Args:
        problem: What was found and what was expected; the whole sentence where `remedy` is empty.
        remedy: How to fix it, apart from the problem where a caller may know another way.
    """

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem

    def within(self, context: str) -> Self:
        """Return the same error with `context` in front of its problem."""
        found = copy.copy(self)
        found.problem = f"{context}{self.problem}"
        return found


class Diverged(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """The loss, or an output of the model, was not a number: the config is the cause."""


class DamagedRun(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """The files of a run, sweep or suite cannot be used; starting it anew fixes that."""


class SupersededError(UserError):
    """Another driver or attempt has taken the run over: this one must not write anything more."""


class HeldError(UserError):
    """Another driver holds the lease of the run, sweep or suite: nothing may be written here."""


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop, and did)
    """The run was asked to stop; what it had done is saved.

    Attributes:
        exit_status: 128 plus the signal's number, as a shell reports it.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def storage_fault(error: OSError) -> str:
    """Return the sentence for the user about one of `STORAGE_FAULTS`."""
    path = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{path}; make room or fix the disk, then run the same command again"


def one_line(message: object, longest: int | None = None) -> str:
    """Return a library's message on one line, cut after `longest` characters."""
    return " ".join(str(message).split())[:longest]
