"""Readers of the records in run folders: strict ones for jobs, forgiving ones for pages.

`Files` trusts nothing: a folder may be half-written, damaged, from another version, or hostile. It
reports an unreadable file as a problem, never as an exception, and reads again only what changed.
No reader follows links or opens devices.
"""

import errno
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Parse = Callable[[bytes], Any]

MOST_BYTES = 64 << 20
"""Bytes read of a single record; a larger one counts as damaged."""


class IrregularFile(ValueError):  # noqa: N818 (a kind of damage)
    """A link, a folder, a pipe or a device where a record should be."""


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is damaged.
    """
    with opened(path) as file:
        return parse_record(file.read(MOST_BYTES))


def parse_record(data: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: saying what `data` is instead.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line of a JSONL file, or None when it is damaged."""
    try:
        return parse_record(line)
    except ValueError:
        return None


class Files:
    """Cached contents of small files, valid while their size, time and inode stay the same."""

    def __init__(self) -> None:
        self._cache: dict[Path, tuple[tuple[int, ...], Any]] = {}
        self._lines: dict[Path, _Lines] = {}
        self._lock = threading.RLock()

    def json(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """Return a JSON object and what is wrong with the file; ({}, None) when there is none."""

        def parse(data: bytes) -> tuple[dict[str, Any], str | None]:
            try:
                return parse_record(data), None
            except ValueError as error:
                return {}, f"{path.name} is damaged: {error}"

        value: tuple[dict[str, Any], str | None] = self._read(path, parse, ({}, None))
        return value

    def text(self, path: Path, most: int = 20_000) -> str:
        """Return the last `most` characters of a text file; empty when there is none."""
        value: str = self._read(path, lambda data: data.decode("utf-8", "replace")[-most:], "")
        return value

    def lines(self, path: Path) -> tuple[list[dict[str, Any]], str | None]:
        """Return the objects of a JSONL file and what is wrong with it; read only what was added."""
        with self._lock:
            follower = self._lines.setdefault(path, _Lines())
            try:
                with opened(path) as file:
                    follower.follow(file)
            except FileNotFoundError:
                return [], None
            except (OSError, IrregularFile) as error:
                return follower.objects, f"{path.name} cannot be read: {_reason(error)}"
            wrong = f"{path.name}: {follower.damaged} damaged line(s) left out"
            return follower.objects, wrong if follower.damaged else None

    def _read(self, path: Path, parse: Parse, absent: Any) -> Any:
        with self._lock:
            try:
                status = path.lstat()
                mark = (status.st_mtime_ns, status.st_size, status.st_ino)
                if path not in self._cache or self._cache[path][0] != mark:
                    with opened(path) as file:
                        self._cache[path] = (mark, parse(file.read(MOST_BYTES)))
            except FileNotFoundError:
                return absent
            except (OSError, IrregularFile) as error:
                wrong = f"{path.name} cannot be read: {_reason(error)}"
                return wrong if absent == "" else ({}, wrong)
            return self._cache[path][1]


class _Lines:
    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.damaged = 0
        self._offset, self._inode, self._tail = 0, -1, b""

    def follow(self, file: Any) -> None:
        now = os.fstat(file.fileno())
        if now.st_ino == self._inode and now.st_size == self._offset:
            return
        file.seek(max(self._offset - len(self._tail), 0))
        if now.st_ino != self._inode or file.read(len(self._tail)) != self._tail:
            self.__init__()  # type: ignore[misc]
            file.seek(0)
        whole, _, _ = file.read(MOST_BYTES).rpartition(b"\n")
        self._inode = now.st_ino
        if not whole:
            return
        self._offset += len(whole) + 1
        self._tail = (whole + b"\n")[-64:]
        for line in whole.split(b"\n"):
            value = parse_line(line)
            if value is None:
                self.damaged += 1
            else:
                self.objects.append(value)


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading; never a link, a pipe or a device.

    Raises:
        IrregularFile: when it is none.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise IrregularFile("not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise IrregularFile("not a regular file")
    return os.fdopen(handle, "rb")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def folders(path: Path) -> Iterator[str]:
    """Yield the names of the folders in `path`, except hidden ones, links, and names not in UTF-8.

    A `path` that is a link itself yields nothing: it may lead out of the storage.
    """
    if path.is_symlink():
        return
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    yield from sorted(name for name in names if not name.startswith(".") and _is_text(name))


def _is_text(name: str) -> bool:
    """Return whether a file name can stand in a page and a link; Linux accepts any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def newest(*paths: Path) -> float:
    """Return the latest modification time in seconds since 1970; 0 when no file exists."""
    times = [0.0]
    for path in paths:
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    return max(times)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def real(value: Any) -> float | None:
    """Return `value` where it is a number (NaN included), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, int) and abs(value) >= 1 << 63 else value


def words(value: Any) -> str:
    """Return `value` as short text."""
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, default=str)
