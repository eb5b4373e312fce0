"""Checkpoints of a run: committed whole with a manifest of hashes, verified before they are used.

    checkpoints/step-00000120/   config.json model.safetensors optimizer.pt state.json MANIFEST.json

The run folder is the one source of truth: a resumed run takes the newest checkpoint here that
verifies. Nothing is reported to Ray Train, whose own record of checkpoints is rewritten in place
(a crash can leave it empty, and then the run can never start again) and is up to two seconds late.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.storage.atomic import sync_folder, sync_tree, write_json

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"step-(\d{8})")
_PROBE_BYTES = 2**20

log = logging.getLogger(__name__)


class SupersededError(RuntimeError):
    """A newer attempt at the run has started: this one must write nothing any more."""


class CheckpointStore:
    """The checkpoints of one run, as one attempt at it sees them.

    Creating a store does not touch the folder; `claim` makes this attempt the only one that may
    commit, so that a worker that comes back from a lost network cannot write over its successor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attempt = uuid.uuid4().hex
        self.skipped: list[str] = []

    def claim(self) -> None:
        """Fence off earlier attempts and clear away what they left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "attempt.json", {"attempt": self.attempt})
        for leftover in self.folder.glob(".inprogress-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def check_claim(self) -> None:
        """Raise SupersededError when a newer attempt has claimed the run."""
        current = json.loads((self.folder / "attempt.json").read_text())["attempt"]
        if current != self.attempt:
            raise SupersededError(
                f"attempt {self.attempt} was superseded by {current}; it stops here"
            )

    def commit(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill a folder and make it the checkpoint of `step`, durable on return.

        Raises:
            UserError: when the disk is full or the storage cannot be written; older checkpoints
                are as they were.
            SupersededError: when a newer attempt has claimed the run.
        """
        final = self.folder / f"step-{step:08d}"
        scratch = self.folder / f".inprogress-{step:08d}-{self.attempt}"
        try:
            scratch.mkdir()
            _fill(scratch, write)
            write_json(scratch / MANIFEST, {"step": step, "files": hashes_of(scratch)})
            sync_tree(scratch)
            self.check_claim()
            # What another attempt made durable is the same by construction, and stays: one that was
            # asleep since its claim was checked must not delete its successor's checkpoint.
            if fault_of(final) is None:
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                if final.exists():
                    shutil.rmtree(final)
                scratch.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise UserError(
                f"checkpoint of step {step} could not be written to {self.folder}: "
                f"{os.strerror(error.errno or 0)}; make room or make it writable, then run the same "
                "command to go on from the last checkpoint"
            ) from error
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return final

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first, verified or not."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return self.folder / f"step-{step:08d}"

    def bring(self, step: int) -> Path:
        """Folder of the checkpoint of `step`, on this node."""
        return self.path(step)

    def newest(self) -> tuple[int, Path] | None:
        """The newest checkpoint that verifies, else None. What was passed over is in `skipped`."""
        for step in reversed(self.steps()):
            path = self.path(step)
            if (fault := fault_of(path)) is None:
                return step, path
            self.skipped.append(f"{path.name} is damaged ({fault}); fell back to an older one")
            log.warning(self.skipped[-1])
        return None

    def keep(self, steps: Collection[int]) -> None:
        """Delete all checkpoints but those of `steps`; the next attempt clears away what cannot go."""
        for step in self.steps():
            if step not in steps:
                # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
                doomed = self.folder / f".inprogress-{step:08d}-deleted-{uuid.uuid4().hex[:8]}"
                try:
                    self.path(step).rename(doomed)
                    shutil.rmtree(doomed)
                except OSError as error:  # NFS keeps what somebody still reads: no reason to stop
                    log.warning("%s could not be deleted: %s", self.path(step), error)


def _fill(scratch: Path, write: Callable[[Path], None]) -> None:
    """Call `write`; when it fails and the disk is why, raise the disk's OSError.

    torch and safetensors write by themselves, and say "unexpected pos 576 vs 534" of a full disk.
    """
    try:
        write(scratch)
    except OSError:
        raise
    except Exception:
        (scratch / "probe").write_bytes(bytes(_PROBE_BYTES))
        raise


def fault_of(folder: Path) -> str | None:
    """Why a committed folder cannot be trusted, or None when every file is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"].items()
        expected = [(folder / name, entry["bytes"], entry["sha256"]) for name, entry in files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no valid {MANIFEST}: {type(error).__name__}"
    for path, size, digest in expected:
        try:
            if path.stat().st_size != size:
                return f"{path.name} has {path.stat().st_size} bytes, not {size}"
            if sha256_of(path) != digest:
                return f"{path.name} has changed"
        except FileNotFoundError:
            return f"{path.name} is missing"
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror}"
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, for its manifest."""

    def files() -> Iterator[Path]:
        return (path for path in sorted(folder.rglob("*")) if path.is_file())

    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files()
    }
