"""Small objects that are replaced only by a writer who knows their version: on disk or in a bucket.

obstore and not pyarrow.fs or fsspec: of the three it alone exposes conditional puts (If-None-Match,
If-Match; generations on Google's side), on which leases and commits rest. It brings no dependencies.

Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, …, GOOGLE_APPLICATION_CREDENTIALS), or from the machine's own role.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

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
"""Supported schemes, and what to check when a bucket does not answer."""
CHUNK = 8 * 2**20
"""Bytes."""
GUARD_SECONDS = 10.0
"""Maximum time to replace a small file."""

Version = dict[str, Any]
"""Identifies an object's content: changes with every write of another content."""
Expected = Version | Literal["nothing"] | None
"""Version that a write may replace; "nothing" only creates, None replaces any."""


class Conflict(Exception):  # noqa: N818 (an answer, not a defect)
    """Another writer has changed the object since it was read."""


@dataclass(frozen=True)
class Stored:
    """An object as it was read; `modified` by the storage's clock."""

    content: bytes
    version: Version
    modified: datetime


class Store(Protocol):
    """Objects with conditional writes, and the clock that stamps them.

    Raises:
        UserError: from every method, when the storage refuses or does not answer.
    """

    def read(self, name: str) -> Stored | None:
        """Return an object, or None when it does not exist."""

    def write(self, name: str, content: bytes, *, over: Expected = None) -> Version:
        """Write an object whole; with `over` only if that is what it holds now, else Conflict."""

    def retire(self, name: str, mark: bytes, over: Version) -> None:
        """Delete an object that holds `over`; where a delete cannot ask for that, write `mark`."""

    def clock(self) -> datetime:
        """Return the time by the clock that stamps `modified`."""


class Disk:
    """Objects as files of a folder, possibly shared by several hosts."""

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
        with self._reported():
            try:
                write_durable(scratch, lambda file: file.write(content))
                with self._guarded(name, scratch):
                    self._expect(name, over)
                    with _conflict_if_deleted():
                        scratch.replace(self.folder / name)
                sync_folder(self.folder)
            except BaseException:
                discard(scratch)
                raise
        return _content_version(content)

    def retire(self, name: str, mark: bytes, over: Version) -> None:  # noqa: ARG002
        # Renamed into a scratch folder: once that is deleted, a suspended process deletes nothing.
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
        """Return the time that the file system gives a new file: on NFS, the server's."""
        probe = scratch_path(self.folder / "probe")
        with self._reported():
            try:
                with probe.open("wb") as file:  # a driver that starts may delete its name
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

        The lock file is removed while it is locked; a process that waited for the removed one sees that
        the name has another inode, or none, and starts over. A process that holds the lock for longer than
        `GUARD_SECONDS` is suspended: its scratch file is deleted, so that it cannot change anything.
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
    """Raise Conflict where a process that waited too long has deleted the scratch file."""
    try:
        yield
    except FileNotFoundError as error:
        raise Conflict from error


def _lock(handle: int) -> bool:
    """Lock an open file without waiting; return False where another process has locked it.

    File systems without locks still replace atomically; the gap between compare and replace is left
    open there.
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
    """Return the name of the file that `Disk` locks while it replaces an object."""
    return f".{name.removeprefix('.')}.lock"


def unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"--storage-path: {folder} cannot be written ({error.strerror}); give a folder that can, seen "
        "by every node, or make room"
    )


def _content_version(content: bytes) -> Version:
    return {"sha256": hashlib.sha256(content).hexdigest()}


class Bucket:
    """Objects below a URL. Creating one sends no request; `impatient` gives up within seconds.

    Raises:
        UserError: from every method, when the storage refuses or does not answer.
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
            "allow_http": True,  # AWS_ENDPOINT_URL alone can ask for it
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
        """Write a file as an object, in parts when it is large; it appears whole."""
        with self._reported():
            obstore.put(self._store, name, path, chunk_size=CHUNK)

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file.

        Raises:
            FileNotFoundError: when there is no such object.
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
        """Return the bucket's time; the request also proves that it can be written and read."""
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
    """Replace an object that this process alone may write, as long as `is_own` accepts its content.

    A write whose answer was lost is retried and finds its own first try: that is no conflict.

    Raises:
        Conflict: when another writer owns it now.
    """
    while True:
        try:
            return store.write(name, content, over=version)
        except Conflict:
            stored = store.read(name)
            if stored is None or not is_own(stored.content):
                raise
            version = stored.version
