"""Readers of records in run folders: strict for jobs, tolerant for pages of the dashboard.

`Files` makes no assumptions: a folder may be half-written, damaged, hostile, or of another version.
`Files` returns problems as text instead of raising, and rereads only changed files. A record that
is a symbolic link, a pipe or a device is never read.
"""

import errno
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Parse = Callable[[BinaryIO], Any]

MOST_BYTES = 64 << 20
"""Maximum bytes read at once; a larger JSON record counts as damaged."""
_CHARACTER_BYTES = 4
"""Maximum bytes of a character in UTF-8."""


class IrregularFile(ValueError):  # noqa: N818 (a kind of damage)
    """Error for a symbolic link, folder, pipe or device in place of a record."""


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a regular file, or holds no JSON object.
    """
    with opened(path) as file:
        return parse_record(file.read(MOST_BYTES))


def parse_record(data: bytes) -> dict[str, Any]:
    """Parse `data` as a JSON object.

    Raises:
        ValueError: `data` is invalid JSON, or JSON of another type.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line of a JSONL file; return None if it is not a JSON object."""
    try:
        return parse_record(line)
    except ValueError:
        return None


class Files:
    """Thread-safe cache of parsed small files.

    An entry is valid while the file's size, modification time and inode stay the same.
    """

    def __init__(self) -> None:
        self._cache: dict[Path, tuple[tuple[int, ...], Any]] = {}
        self._lines: dict[Path, _Lines] = {}
        self._lock = threading.RLock()

    def json(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """Return the JSON object in a file, and the problem or None; ({}, None) without a file."""

        def parse(file: BinaryIO) -> tuple[dict[str, Any], str | None]:
            try:
                return parse_record(file.read(MOST_BYTES)), None
            except ValueError as error:
                return {}, f"{path.name} is damaged: {error}"

        value: tuple[dict[str, Any], str | None] = self._read(path, parse, ({}, None))
        return value

    def text(self, path: Path, most: int = 20_000) -> str:
        """Return the last `most` characters of a text file; empty if there is no file.

        For an unreadable file, the text is the problem.
        """

        def end(file: BinaryIO) -> str:
            size = os.fstat(file.fileno()).st_size
            # The first character may be cut.
            file.seek(max(size - min(_CHARACTER_BYTES * (most + 1), MOST_BYTES), 0))
            return file.read(MOST_BYTES).decode("utf-8", "replace")[-most:]

        value: str = self._read(path, end, "")
        return value

    def lines(self, path: Path) -> tuple[list[dict[str, Any]], str | None]:
        """Return all objects in the lines of a JSONL file so far, and the problem or None.

        The list is the cache's own, so do not change it. A call reads only lines added since the
        last one. A last line without newline is left out. Without a file, the list is empty.
        """
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
                        self._cache[path] = (mark, parse(file))
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
        self._inode = now.st_ino
        while whole := file.read(MOST_BYTES).rpartition(b"\n")[0]:
            self._offset += len(whole) + 1
            file.seek(self._offset)
            self._tail = (whole + b"\n")[-64:]
            for line in whole.split(b"\n"):
                value = parse_line(line)
                if value is None:
                    self.damaged += 1
                else:
                    self.objects.append(value)


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        IrregularFile: `path` is a symbolic link, a folder, a pipe or a device.
        OSError: The file does not exist or cannot be opened.
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
    """Yield the sorted names of folders in `path`, without hidden folders, links and invalid UTF-8.

    A `path` that is a symbolic link yields nothing, since it may lead out of the storage. Neither
    does a path that cannot be read.
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
    """Return whether a file name is valid UTF-8, as pages need; Linux accepts any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def newest(*paths: Path) -> float:
    """Return the latest modification time of `paths` in seconds since 1970; 0 if none exists."""
    times = [0.0]
    for path in paths:
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    return max(times)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a dict, else an empty dict."""
    return value if isinstance(value, dict) else {}


def real(value: Any) -> float | None:
    """Return a number (or NaN) unchanged; None for other types, and for integers beyond 2**63."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, int) and abs(value) >= 1 << 63 else value


def words(value: Any) -> str:
    """Return a JSON value as display text: a string unchanged, a dash for None, else JSON."""
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, default=str)
