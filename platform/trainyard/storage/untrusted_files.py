"""What run folders hold, read again only where a file changed.

Nothing here trusts a folder: it may be half-written, damaged, from another version, or hostile. A
file that cannot be read is a `problem` shown on the page, never an exception; links and devices are
not followed.
"""

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Parse = Callable[[bytes], Any]

MOST_BYTES = 64 << 20
"""Of a single file; more is taken for a mistake, and said."""


class Files:
    """Contents of small files, kept while their size, time and inode stay the same."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[int, ...], Any]] = {}
        self._lines: dict[Path, _Lines] = {}
        self._lock = threading.RLock()

    def json(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """A JSON object, and what is wrong with the file; ({}, None) when there is none."""

        def parse(data: bytes) -> tuple[dict[str, Any], str | None]:
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                return {}, f"{path.name} is damaged: it is no valid JSON"
            if not isinstance(value, dict):
                return {}, f"{path.name} is damaged: it holds no JSON object"
            return value, None

        found: tuple[dict[str, Any], str | None] = self._read(path, parse, ({}, None))
        return found

    def text(self, path: Path, most: int = 20_000) -> str:
        """The end of a text file, at most `most` characters; empty when there is none."""
        found: str = self._read(path, lambda data: data.decode("utf-8", "replace")[-most:], "")
        return found

    def lines(self, path: Path) -> tuple[list[dict[str, Any]], str | None]:
        """The objects of a JSONL file and what is wrong with it; what was read before is kept."""
        with self._lock:
            kept = self._lines.setdefault(path, _Lines())
            try:
                with opened(path) as file:
                    kept.follow(file)
            except FileNotFoundError:
                return [], None
            except OSError as error:
                return kept.found, f"{path.name} cannot be read: {error.strerror}"
            wrong = f"{path.name}: {kept.damaged} damaged line(s) left out"
            return kept.found, wrong if kept.damaged else None

    def _read(self, path: Path, parse: Parse, absent: Any) -> Any:
        with self._lock:
            try:
                found = path.lstat()
                mark = (found.st_mtime_ns, found.st_size, found.st_ino)
                if path not in self._kept or self._kept[path][0] != mark:
                    with opened(path) as file:
                        self._kept[path] = (mark, parse(file.read(MOST_BYTES)))
            except FileNotFoundError:
                return absent
            except OSError as error:
                wrong = f"{path.name} cannot be read: {error.strerror or error}"
                return wrong if absent == "" else ({}, wrong)
            return self._kept[path][1]


class _Lines:
    """A JSONL file that grows: only what was added is read, unless it was written anew."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
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
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                self.found.append(value)
            else:
                self.damaged += 1


def opened(path: Path) -> Any:
    """A regular file, opened for reading; never a link, a pipe or a device.

    Raises:
        OSError: when it is none.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "not a regular file")
    return os.fdopen(handle, "rb")


def folders(path: Path) -> Iterator[str]:
    """Names of the folders in `path`, but for hidden ones, links, and what is no UTF-8.

    Nothing is in a `path` that is a link itself: it may lead out of the storage.
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
    """Whether a file name can stand in a page and in a link; Linux takes any bytes for one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def newest(*paths: Path) -> float:
    """When the latest of these files was written, in seconds since 1970; 0 when there is none."""
    times = [0.0]
    for path in paths:
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    return max(times)


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def real(value: Any) -> float | None:
    """`value` where it is a number (NaN is one), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, int) and abs(value) >= 1 << 63 else value


def words(value: Any) -> str:
    """`value` as short text."""
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, default=str)
