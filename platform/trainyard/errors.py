"""The exceptions that are not defects: a mistake the user can mend, and a stop that was asked for."""

import errno

STORAGE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Full, over its quota, read-only, broken: the disk's fault wherever it is met, and no defect."""


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message is one sentence: what was found, what was expected, how to fix it. Jobs print it and
    exit with status 2, without a traceback; a Python caller gets it as an exception.
    """


class Diverged(UserError):  # noqa: N818 (a sentence for the user, like its parent)
    """The loss, or an answer of the model, was no number: the config's fault and nothing else's."""


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop, and did)
    """The run was asked to stop; what it had done is saved.

    Attributes:
        exit_status: 128 plus the signal's number, as a shell reports it.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def storage_fault(error: OSError) -> str:
    """What to tell people of one of `STORAGE_FAULTS`."""
    place = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{place}; make room or mend the disk, then run the same command again"
