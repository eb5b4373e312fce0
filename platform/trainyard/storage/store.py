"""Small objects with conditional writes, on disk or in a bucket.

Leases and commits need conditional puts: If-None-Match and If-Match, or generations on Google Cloud
Storage. Of obstore, pyarrow.fs and fsspec, only obstore has conditional puts. Its one dependency is
typing-extensions.

Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, …, GOOGLE_APPLICATION_CREDENTIALS), or from the machine's role.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from trainyard.errors import UserError
from trainyard.storage.atomic import (
    discard,
    scratch_path,
    scratch_pattern,
    sync_folder,
    write_durable,
)

SCHEMES = {
    "s3": "the bucket's name and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "the bucket's name and GOOGLE_APPLICATION_CREDENTIALS",
}
"""Supported schemes of URLs, with the settings that an error advises to check."""
CHUNK = 8 * 2**20
"""Bytes in a part of an upload, and in a chunk of a download."""
GUARD_SECONDS = 10.0
"""Maximum time to wait for the lock of a file, see `Disk._guarded`."""

Version = dict[str, Any]
"""Identifier of an object's content; a write of other content changes it."""
Expected = Version | Literal["nothing"] | None
"""Condition of a write: version to replace, "nothing" to only create, None to replace all."""

Result = TypeVar("Result")


class Conflict(Exception):  # noqa: N818 (an answer, not a defect)
    """Refusal of a conditional write: another writer has changed the object."""


@dataclass(frozen=True)
class Stored:
    """Content and version of an object, and its time of modification by the storage's clock."""

    content: bytes
    version: Version
    modified: datetime


class Store(Protocol):
    """Storage of objects with conditional writes.

    Raises:
        UserError: In any method, the storage refuses access or does not answer.
    """

    def read(self, name: str) -> Stored | None:
        """Return an object, or None if it does not exist."""

    def write(self, name: str, content: bytes, *, over: Expected = None) -> Version:
        """Write an object atomically, and return its new version.

        Raises:
            Conflict: The object does not meet the condition `over`.
        """

    def retire(self, name: str, mark: bytes, over: Version) -> None:
        """Delete an object of version `over`, or write `mark` if a delete cannot be conditional.

        Raises:
            Conflict: The object has another version.
        """

    def clock(self) -> datetime:
        """Return the time of the storage's clock, which sets `Stored.modified`."""


class Disk:
    """Objects as files in a folder, which several hosts may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> Stored | None:
        with self._reported():
            for last in (False, False, True):
                try:
                    with (self.folder / name).open("rb") as file:
                        content, stamp = file.read(), os.fstat(file.fileno()).st_mtime
                except FileNotFoundError:
                    return None
                except OSError as error:
                    if error.errno != errno.ESTALE or last:  # NFS: replaced while it was read
                        raise
                else:
                    break
        return Stored(content, _content_version(content), datetime.fromtimestamp(stamp, UTC))

    def write(self, name: str, content: bytes, *, over: Expected = None) -> Version:
        scratch = scratch_path(self.folder / name)

        def write() -> None:
            write_durable(scratch, lambda file: file.write(content))

        with self._reported():
            try:
                if over == "nothing":
                    self._in_folder(write)
                else:
                    write()
                with self._guarded(name, scratch):
                    self._expect(name, over)
                    with _conflict_if_deleted():
                        scratch.replace(self.folder / name)
                sync_folder(self.folder)
            except BaseException:
                discard(scratch)
                raise
        return _content_version(content)

    def _in_folder(self, create: Callable[[], Result]) -> Result:
        """Create a file by `create`, and before it the folder if that is absent.

        A driver removes its job's empty folder after an error, while another waits for the lease.
        """
        for _ in range(3):  # it may be removed again
            try:
                return create()
            except FileNotFoundError:
                with suppress(FileNotFoundError):  # a parent folder was removed, too
                    self.folder.mkdir(parents=True, exist_ok=True)
        return create()

    def retire(self, name: str, mark: bytes, over: Version) -> None:  # noqa: ARG002
        # Renamed into a scratch folder: if others delete it, a suspended process deletes no object.
        scratch = scratch_path(self.folder / name)
        with self._reported():
            try:
                scratch.mkdir()
                with self._guarded(name, scratch):
                    self._expect(name, over)
                    with _conflict_if_deleted():
                        (self.folder / name).rename(scratch / name)
            finally:
                discard(scratch)

    def clock(self) -> datetime:
        """Return the time that the file system gives to a new file; NFS gives the server's time."""
        probe = scratch_path(self.folder / "probe")
        with self._reported():
            try:
                # A starting driver may delete the name while the file is open.
                with self._in_folder(lambda: probe.open("wb")) as file:
                    file.write(b"probe")
                    file.flush()
                    os.fsync(file.fileno())
                    return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
            finally:
                discard(probe)

    def _expect(self, name: str, over: Expected) -> None:
        if over is not None:
            stored = self.read(name)
            if over != ("nothing" if stored is None else stored.version):
                raise Conflict

    @contextmanager
    def _guarded(self, name: str, scratch: Path) -> Iterator[None]:
        """Let one process of all hosts at a time compare and replace an object.

        The lock file is removed while locked. A process that locks a removed file finds another
        inode or no file under its name, and starts over. After `GUARD_SECONDS` of waiting, the
        holder counts as suspended. Its scratch file is deleted, so its attempt to replace fails.
        """
        path = self.folder / lock_name(name)
        deadline = time.monotonic() + GUARD_SECONDS
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                if _lock(handle) and _is_at(path, handle):
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)
                    return
            finally:
                os.close(handle)
            if time.monotonic() > deadline:
                deadline = time.monotonic() + GUARD_SECONDS
                for other in self.folder.glob(scratch_pattern(name)):
                    if other != scratch:
                        discard(other)
                path.unlink(missing_ok=True)
            time.sleep(0.01)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.folder, error) from error


@contextmanager
def _conflict_if_deleted() -> Iterator[None]:
    """Raise Conflict if a process that waited `GUARD_SECONDS` has deleted the scratch file."""
    try:
        yield
    except FileNotFoundError as error:
        raise Conflict from error


def _lock(handle: int) -> bool:
    """Lock an open file without waiting; return False if another process has locked the file.

    Returns True on file systems without locks. Replacing is atomic there, but another process may
    write between compare and replace.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
    return True


def _is_at(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def lock_name(name: str) -> str:
    """Return the name of the lock file of an object, see `Disk._guarded`."""
    return f".{name.removeprefix('.')}.lock"


def unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"--storage-path: {folder} cannot be written ({error.strerror}); give a writable folder "
        "that every node sees, or make room"
    )


def _content_version(content: bytes) -> Version:
    return {"sha256": hashlib.sha256(content).hexdigest()}


class Bucket:
    """Objects below a URL. The constructor sends no request.

    Args:
        url: URL of the objects' common prefix, s3://… or gs://….
        impatient: True to give up within seconds instead of minutes; a pickled copy is patient.

    Raises:
        UserError: In the constructor, the scheme of `url` is not supported. In any method, the
            storage refuses access or does not answer.
    """

    def __init__(self, url: str, *, impatient: bool = False) -> None:
        self.url, self._impatient = url.rstrip("/"), impatient
        self._scheme = url.partition("://")[0]
        if self._scheme not in SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(
                f"--storage-path {url}: give a folder, or a URL that starts with {schemes}"
            )

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.url,)

    @cached_property
    def _store(self) -> Any:
        patience: Any = {
            "max_retries": 2 if self._impatient else 10,
            "retry_timeout": timedelta(seconds=5 if self._impatient else 180),
        }
        client: Any = {
            "connect_timeout": "3s",
            "timeout": "5s" if self._impatient else "120s",
            "allow_http": True,  # only a user's AWS_ENDPOINT_URL leads to http
        }
        with self._reported():
            return from_url(self.url, retry_config=patience, client_options=client)

    def read(self, name: str) -> Stored | None:
        with self._reported():
            try:
                answer = obstore.get(self._store, name)
                content = bytes(answer.bytes())
            except FileNotFoundError:
                return None
            return Stored(content, _version(answer.meta), answer.meta["last_modified"])

    def has(self, name: str) -> bool:
        with self._reported():
            try:
                obstore.head(self._store, name)
            except FileNotFoundError:
                return False
            return True

    def write(self, name: str, content: bytes, *, over: Expected = None) -> Version:
        mode: Any = "overwrite" if over is None else "create" if over == "nothing" else over
        with self._reported():
            try:
                written = obstore.put(self._store, name, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                raise Conflict from error
            return _version(written)

    def upload(self, name: str, path: Path) -> None:
        """Upload a file as an object, in parts if large; the object appears only when complete."""
        with self._reported():
            obstore.put(self._store, name, path, chunk_size=CHUNK)

    def download(self, name: str, path: Path) -> None:
        """Download an object to the file `path`.

        Raises:
            FileNotFoundError: The object does not exist.
        """
        with self._reported(absent_is_fault=False):
            answer = obstore.get(self._store, name)
            with path.open("wb") as file:
                for chunk in answer.stream(min_chunk_size=CHUNK):
                    file.write(chunk)

    def names(self, folder: str) -> list[str]:
        with self._reported():
            return [stored["path"] for stored in obstore.list(self._store, folder).collect()]

    def delete(self, names: list[str]) -> None:
        with self._reported():
            if names:
                obstore.delete(self._store, names)

    def retire(self, name: str, mark: bytes, over: Version) -> None:
        self.write(name, mark, over=over)

    def clock(self) -> datetime:
        """Return the bucket's time, from a probe object that also proves read and write access."""
        name = f".probe-{uuid.uuid4().hex}"
        with self._reported():
            obstore.put(self._store, name, b"probe")
            now: datetime = obstore.head(self._store, name)["last_modified"]
            obstore.delete(self._store, name)
        return now

    @contextmanager
    def _reported(self, *, absent_is_fault: bool = True) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not absent_is_fault:
                raise
            raise UserError(
                f"--storage-path {self.url} cannot be used ({_reason(error)})",
                remedy=f"check {SCHEMES[self._scheme]}",
            ) from error


def _version(answer: Any) -> Version:
    return {key: answer[key] for key in ("e_tag", "version") if answer[key] is not None}


def _reason(error: Exception) -> str:
    text = str(error).partition("\n\nDebug source")[0]
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text) for tag in ("Code", "Message"))
    if code:
        return f"{code[1]}: {message[1]}" if message else code[1]
    endpoint = re.search(r"Error performing \w+ (\w+://[^/ ]+)", text)
    reason = " ".join(text.rpartition(" - ")[2].split())[:200].rstrip(":")
    return f"{endpoint[1]}: {reason}" if endpoint else reason


def replace_own(
    store: Store, name: str, content: bytes, version: Version, is_own: Callable[[bytes], bool]
) -> Version:
    """Replace an object that only this process may write, and return its new version.

    The client repeats a write whose answer was lost, and then finds the version of its first try.
    So the write is repeated while `is_own` accepts the stored content.

    Raises:
        Conflict: The object is gone, or `is_own` rejects its content.
    """
    while True:
        try:
            return store.write(name, content, over=version)
        except Conflict:
            stored = store.read(name)
            if stored is None or not is_own(stored.content):
                raise
            version = stored.version
