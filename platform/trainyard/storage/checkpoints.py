"""Checkpoints of a run: committed atomically with a manifest of hashes, verified before use.

    checkpoints/step-00000120/   config.json model.safetensors optimizer.pt state.json MANIFEST.json

With fsdp and deepspeed, each worker writes its part, see `training.worker.weights`. The optimizer's
files are deleted when the run is finished; such a checkpoint can be exported, but not resumed from.

The run folder is the single source of truth: a run resumes from its newest checkpoint that verifies.
Checkpoints are not reported to Ray Train: it rewrites its own record in place, up to two seconds
late. A crash can leave that record empty, and the run could then never start again.
"""

import errno
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainyard.errors import STORAGE_FAULTS, DamagedRun, SupersededError, UserError, one_line
from trainyard.storage.atomic import scratch_path, sync_file, sync_folder, sync_tree, write_json
from trainyard.storage.lease import Fence
from trainyard.storage.manifest import (
    MANIFEST,
    drop,
    entry_of,
    fault_of,
    has_dropped,
    hashes_of,
)

_NAME = re.compile(r"step-(\d{8})")
OPTIMIZER = "optimizer"
"""Start of the names of the files with the optimizer's state."""
_PROBE_BYTES = 2**20
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""Number of an error of the operating system, in a message of a library written in Rust."""
_DISK_FAULTS = {*STORAGE_FAULTS, errno.EFBIG, errno.EACCES, errno.ENOENT}

log = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one run.

    The constructor does not access the folder. `claim` starts an attempt; earlier attempts can
    no longer commit. So a worker that returns after a network outage cannot overwrite the
    checkpoints of its successor.

    Args:
        folder: Folder of the checkpoints.
        fence: Fence of the driver that the attempt belongs to, checked before each write.
        publish: Function that makes the run's records durable, called before a commit.
    """

    def __init__(
        self, folder: Path, fence: Fence | None = None, publish: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = folder
        self.attempt: str | None = None
        self.skipped: list[str] = []
        self._fence, self._publish = fence, publish

    def claim(self) -> None:
        """Start an attempt: fence off earlier attempts, and delete their unfinished checkpoints.

        Raises:
            SupersededError: Another driver has taken over the run.
            UserError: The storage does not answer, or the bucket's index is damaged.
        """
        self._check_fence()
        self.attempt = uuid.uuid4().hex
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        """Fence off earlier attempts in `folder`, and delete their unfinished checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "attempt.json", {"attempt": self.attempt})
        for leftover in self.folder.glob(".inprogress-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def check_claim(self) -> None:
        """Check that this attempt is still the newest.

        Raises:
            SupersededError: Another driver or a newer attempt has claimed the run.
            UserError: The storage does not answer.
        """
        self._check_fence()
        self.check_attempt()

    def check_attempt(self) -> None:
        """Check that this attempt is still the newest in `folder`; the lease is not read.

        Raises:
            SupersededError: A newer attempt has claimed the run, or `folder` was deleted.
        """
        try:
            current = json.loads((self.folder / "attempt.json").read_text())["attempt"]
        except FileNotFoundError as error:  # a successor on this node empties its scratch folder
            raise SupersededError(
                f"attempt {self.attempt} was superseded, because {self.folder} was deleted; it stops here"
            ) from error
        if current != self.attempt:
            raise SupersededError(
                f"attempt {self.attempt} was superseded by {current}; it stops here"
            )

    def commit(self, step: int, write: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """Let `write` fill a folder, and commit it as the checkpoint of `step`; durable on return.

        `write` may return manifest entries of files that other processes wrote and hashed.

        Raises:
            UserError: The disk is full, or the storage cannot be written or does not answer; older
                checkpoints are unchanged.
            SupersededError: Another driver or a newer attempt has claimed the run.
        """
        final, scratch = self._final(step), self._scratch(step, self.attempt)
        try:
            scratch.mkdir()
            with disk_errors(scratch):
                known = write(scratch)
            write_json(scratch / MANIFEST, {"step": step, "files": hashes_of(scratch, known)})
            sync_tree(scratch)
            self._publish_local()
            self.check_claim()
            # A valid checkpoint of another attempt has the same content, and stays. An attempt that
            # was suspended after `check_claim` must not delete its successor's checkpoint.
            if fault_of(final) is None and not has_dropped(final):
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                if final.exists():
                    shutil.rmtree(final)
                scratch.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):
                self.check_claim()  # a successor's claim deletes the folder that is being filled
            raise unwritable(step, str(self.folder), error) from error
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return final

    def write_part(
        self, step: int, attempt: str, write: Callable[[Path], Iterable[Path]]
    ) -> dict[str, Any]:
        """Let `write` add files to the checkpoint that rank 0 commits in `attempt`; durable on return.

        Any process calls this while rank 0 is in `commit`. `write` returns the files.

        Returns:
            Manifest entries of the files, by name.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
            UserError: The bucket cannot be written.
        """
        return write_files(self._scratch(step, attempt), write)

    def _final(self, step: int) -> Path:
        """Return the folder of a checkpoint that this attempt commits."""
        return self.path(step)

    def _scratch(self, step: int, attempt: str | None) -> Path:
        return self.folder / f".inprogress-{step:08d}-{attempt}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first, verified or not.

        Raises:
            UserError: The bucket does not answer, or its index is damaged.
        """
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def bring(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step` on this node; download it if necessary.

        Raises:
            UserError: The bucket does not answer, or its checkpoint is damaged.
        """
        return self.path(step)

    def bring_best(self, step: int) -> Path:
        """Verify the best checkpoint, and return its folder on this node.

        Raises:
            DamagedRun: The checkpoint is damaged; no other checkpoint can replace it.
            UserError: The bucket does not answer.
        """
        if (fault := self._fault(step)) is not None:
            raise DamagedRun(
                f"the best checkpoint {self.path(step)} is damaged ({fault})",
                remedy="use --fresh to train it again",
            )
        return self.path(step)

    def _fault(self, step: int) -> str | None:
        """Return why the checkpoint of `step` does not verify, or None if it does."""
        return fault_of(self.path(step))

    def newest(self) -> tuple[int, Path] | None:
        """Return step and folder of the newest checkpoint that verifies, or None.

        `skipped` lists the checkpoints that were passed over: damaged ones, and those without the
        optimizer's state.

        Raises:
            UserError: The bucket does not answer, or its index is damaged.
        """
        for step in reversed(self.steps()):
            if (fault := self._fault(step)) is not None:
                self._skip(f"{self._name(step)} is damaged ({fault})")
            elif has_dropped(self.path(step)):
                self._skip(f"{self._name(step)} holds no optimizer state")
            else:
                return step, self.path(step)
        return None

    def last_of_finished(self) -> Path | None:
        """Return the folder of the last checkpoint of a finished run; None if it is not usable.

        The run has called `drop_optimizer`.

        Raises:
            UserError: The bucket does not answer, or its index is damaged.
        """
        for step in self.steps()[-1:]:
            if self._fault(step) is None and has_dropped(self.path(step)):
                return self.path(step)
        return None

    def drop_optimizer(self) -> None:
        """Delete the optimizer's state from all checkpoints; an error is only logged.

        Training cannot resume from them any more, so the run must be finished.

        Raises:
            SupersededError: Another driver has taken over the run.
        """
        self._check_fence()
        for step in self.steps():
            try:
                self._drop(step)
            except (OSError, ValueError, UserError) as error:
                log.warning(
                    "optimizer state of %s could not be deleted: %s", self.path(step), error
                )

    def _drop(self, step: int) -> None:
        drop(self.path(step), OPTIMIZER)

    def _name(self, step: int) -> str:
        return self.path(step).name

    def keep(self, steps: Collection[int], until: int | None = None) -> None:
        """Delete all checkpoints except those of `steps` and those after step `until`.

        An attempt passes its own step as `until`, because later checkpoints may be its successor's.
        An OSError is only logged: NFS keeps files that another process has open, until the next
        `claim` deletes them.

        Raises:
            SupersededError: Another driver or a newer attempt has claimed the run.
            UserError: The storage does not answer.
        """
        self._check_fence()
        try:
            if self.attempt is not None:
                self.check_attempt()
        except OSError as error:
            log.warning("no checkpoint is deleted: %s", error)
            return
        for step in older(self.steps(), until):
            if step not in steps:
                self._delete(self.path(step))

    def _delete(self, path: Path) -> None:
        """Delete the folder of a checkpoint, or log why that failed."""
        # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
        doomed = path.with_name(f".inprogress-{path.name}-deleted-{uuid.uuid4().hex[:8]}")
        try:
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:  # NFS keeps files that are open elsewhere: no reason to stop
            log.warning("%s could not be deleted: %s", path, error)

    def _publish_local(self) -> None:
        self._publish()

    def _check_fence(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def _skip(self, reason: str) -> None:
        self.skipped.append(f"{reason}; fell back to an older one")
        log.warning(self.skipped[-1])


def write_files(folder: Path, write: Callable[[Path], Iterable[Path]]) -> dict[str, Any]:
    """Let `write` add files to `folder`; return their manifest entries, by name. Durable on return.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    with disk_errors(folder):
        files = list(write(folder))
    for file in files:
        sync_file(file)
    return {file.name: entry_of(file) for file in files}


def unwritable(step: int, place: str, error: OSError) -> UserError:
    """Build the error of a checkpoint that could not be written to `place`, a folder."""
    reason = os.strerror(error.errno) if error.errno else one_line(error)
    return UserError(
        f"checkpoint of step {step} could not be written to {place}: {reason}; "
        "make room or make it writable, then run the same command to resume from the last checkpoint"
    )


def older(steps: Iterable[int], until: int | None) -> list[int]:
    """Return the steps up to `until`; None for all."""
    return [step for step in steps if until is None or step <= until]


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the block that come from the disk of `folder` as an OSError.

    For a full disk, torch and safetensors raise others, such as "unexpected pos 576 vs 534" or "I/O
    error: No space left on device (os error 28)", and NumPy an OSError without a number.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        found = _OS_ERROR.search(str(error))
        if found and int(found[1]) in _DISK_FAULTS:
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        _probe_disk(folder)
        raise


def _probe_disk(folder: Path) -> None:
    """Raise an OSError unless a file of 1 MiB can be written in `folder`."""
    probe = scratch_path(folder / "probe")
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)
