"""Folder of a job: its record, its lease and the requests to it, possibly mirrored in a bucket."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainyard.errors import DamagedRun, UserError
from trainyard.storage.atomic import (
    as_json,
    discard,
    scratch_pattern,
    write_json,
)
from trainyard.storage.lease import LEASE, Fence, Lease
from trainyard.storage.mirror import (
    DRIVER,
    Mirror,
)
from trainyard.storage.records import parse_record, read_record
from trainyard.storage.store import Bucket, Conflict, Disk, Store, lock_name, unwritable

_GUARDS = {LEASE, lock_name(LEASE), DRIVER}
REQUEST_NAMES = ("stop-request", "restart-request")
_REQUESTS = [f"{name}*" for name in REQUEST_NAMES]
LOG = "log.txt"


def storage_folder(path: str) -> Path:
    """Return `--storage-path` as an absolute path: workers have another working directory.

    Raises:
        UserError: `path` is a URL.
    """
    if "://" in path:
        raise UserError(
            f"--storage-path {path} is a URL, with which only `trainyard train` can work; mount the bucket "
            "and give the folder"
        )
    return Path(path).expanduser().absolute()


class JobFolder:
    """Paths and record of a job in `<storage_path>/<name>/`. The constructor accesses no storage.

    Args:
        path: Folder of the job; with a `mirror`, its scratch copy on this node.
        mirror: Copy of the folder in a bucket.
        fence: Fence of the sweep or suite that the job belongs to; inside `lease`, the job's own.
            Checked before shared records are written, except requests and usage.jsonl.
    """

    RECORD = "run.json"
    KIND = "run"

    def __init__(
        self, path: Path, *, mirror: Mirror | None = None, fence: Fence | None = None
    ) -> None:
        self.path, self.mirror, self.fence = path, mirror, fence
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"

    @property
    def stop_request(self) -> Path:
        """Path of the file that asks the holder of `fence`, and runs below it, to save and stop."""
        return self.path / request_name("stop", self.fence)

    @property
    def has_siblings(self) -> bool:
        """Return whether the job, whose lease is held, is one of several of a sweep or suite."""
        return self.fence is not None and self.fence.above is not None

    def stop_is_requested(self) -> bool:
        """Return whether there is a stop request to `fence`, a fence above it, or any holder."""
        return any(
            (self.path / request_name("stop", one)).exists() for one in _and_above(self.fence)
        )

    def create(self) -> None:
        """Create the folder, and check that it and the bucket can be written.

        Raises:
            UserError: The folder or the bucket cannot be written, or `check` fails.
        """
        self.check()
        try:
            if self.mirror is not None:
                Bucket(self.mirror.bucket.url, impatient=True).clock()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        Disk(self.path).clock()

    @contextmanager
    def created(self) -> Iterator[None]:
        """Create the folder; after a UserError or Ctrl-C in the block, remove empty folders made here.

        Raises:
            UserError: The folder or the bucket cannot be written, or `check` fails.
        """
        missing = absent(self.path, self.path.parent / ".cache", *self.path.parents)
        self.create()
        try:
            yield
        except (UserError, KeyboardInterrupt):
            remove_empty(missing)
            raise

    def address(self, name: str = "") -> str:
        """Return the path or URL of a file or folder of the job; by default, of the job."""
        if self.mirror is not None:
            return f"{self.mirror.bucket.url}/{self.mirror.key(name)}".rstrip("/")
        return str(self.path / name)

    @contextmanager
    def lease(self, patience: float = 0.0) -> Iterator[Lease]:
        """Create the folder, hold its `Lease`, and delete old requests and scratch files.

        After a UserError in the block, empty folders made here are removed. A folder that holds
        only the driver's log counts as empty, unless the job is in a bucket.

        Raises:
            HeldError: Another driver still holds the lease after `patience` seconds.
            UserError: The folder or the bucket cannot be written, or `check` fails.
        """
        is_new = not self.path.exists()
        with (
            self.created(),
            Lease(*self._stored(LEASE), f"{self.KIND} '{self.path.name}'", patience) as lease,
        ):
            above, self.fence = self.fence, lease.fence(self.fence)
            try:
                for pattern in (scratch_pattern(), *_REQUESTS):
                    for left in self.path.glob(pattern):
                        discard(left)
                yield lease
            except UserError:
                if is_new and self.mirror is None and not self.names():
                    with suppress(UserError):  # the log of a successor stays
                        self.check()
                        (self.path / LOG).unlink(missing_ok=True)
                raise
            finally:
                self.fence = above

    def check(self) -> None:
        """Check that this driver, if it has a fence, still holds the lease of the job.

        Raises:
            SupersededError: Another driver has taken over the job.
            UserError: The storage does not answer.
        """
        if self.fence is not None:
            self.fence.check()

    def read(self) -> dict[str, Any]:
        """Return the job's record; empty before it is first written.

        Raises:
            DamagedRun: The record holds no JSON object.
        """
        return self.read_json(self.RECORD)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file of the folder; empty if the file is absent.

        Raises:
            DamagedRun: The file holds no JSON object.
        """
        try:
            return read_record(self.path / name)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise self.damaged(name) from error

    def damaged(self, name: str) -> DamagedRun:
        return DamagedRun(
            f"{self.path / name} is damaged",
            remedy=f"use --fresh to start this {self.KIND} anew, or another --run-name",
        )

    def update(self, **fields: Any) -> None:
        """Set fields of the record with a conditional write; repeat it if another process writes.

        Raises:
            DamagedRun: The record holds no JSON object.
            SupersededError: Another driver has taken over the job.
            UserError: The storage cannot be read or written.
        """
        store, name = self._stored(self.RECORD)
        while True:
            stored = store.read(name)
            try:
                before = {} if stored is None else parse_record(stored.content)
            except ValueError as error:
                raise self.damaged(self.RECORD) from error
            record = {**before, **fields}
            self.check()
            try:
                store.write(
                    name, as_json(record).encode(), over=stored.version if stored else "nothing"
                )
                break
            except Conflict:
                continue
        if self.mirror is not None:
            write_json(self.path / self.RECORD, record)

    def _stored(self, name: str) -> tuple[Store, str]:
        """Return the store of a file that several drivers may write, and the file's name in it."""
        if self.mirror is None:
            return Disk(self.path), name
        return self.mirror.bucket, self.mirror.key(name)

    def publish(self, *names: str) -> None:
        """Upload files and folders to the job's bucket, if it has one; skip unchanged files.

        Raises:
            SupersededError: Another driver has taken over the job.
            UserError: The bucket cannot be written.
        """
        if self.mirror is not None:
            self.check()
            self.mirror.push(*names)

    def names(self) -> list[str]:
        """Return the names in the folder, except files of a starting driver such as the lease."""
        if self.mirror is not None:
            return sorted({name.partition("/")[0] for name in self.mirror.names()})
        return sorted(
            path.name
            for path in self.path.iterdir()
            if path.name not in {LEASE, LOG}
            and not any(path.match(p) for p in (scratch_pattern(), lock_name("*"), *_REQUESTS))
        )

    def clear(self) -> None:
        """Delete everything in the folder, except its lease.

        Raises:
            SupersededError: Another driver has taken over the job.
            UserError: The folder has content but no record, so it is not the folder of a job. Or
                the storage does not answer.
        """
        self.check()
        if (names := self.names()) and self.RECORD not in names:
            raise UserError(
                f"{self.address()} holds {names[0]} but no {self.RECORD}, so --fresh does not empty it; "
                "choose another --run-name"
            )
        # The record goes last: without it, --fresh refuses to delete the rest.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == self.RECORD):
            if path.name not in _GUARDS:
                whole = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path) if whole else path.unlink(missing_ok=True)
        if self.mirror is not None:
            names = self.mirror.names()
            self.mirror.delete(name for name in names if name != self.RECORD)
            self.mirror.delete(name for name in names if name == self.RECORD)


def absent(*folders: Path) -> list[Path]:
    """Return the folders that do not exist, in the given order."""
    return [folder for folder in folders if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty; give the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def request_name(kind: str, fence: Fence | None) -> str:
    """Return the file name of a request to the holder of `fence`; None means any holder."""
    return f"{kind}-request" if fence is None else f"{kind}-request-{fence.id[:12]}"


def _and_above(fence: Fence | None) -> Iterator[Fence | None]:
    while fence is not None:
        yield fence
        fence = fence.above
    yield None
