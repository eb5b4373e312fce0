"""Crash-safe file operations: a file is complete under its name, or absent."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from numpy.typing import NDArray


def scratch_path(path: Path) -> Path:
    """Return a unique hidden path next to `path`, for a file or folder in progress.

    Its name holds a UUID, since process ids of several containers can be equal.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def scratch_pattern(name: str | None = None) -> str:
    """Return the glob pattern of scratch files of `name` or of all names, as left by a crash."""
    return f".{'*' if name is None else escape(name)}.*.tmp"


def discard(path: Path) -> None:
    """Delete a file, or a folder with its content; an absent path is not an error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write `text` to `path`; after a crash the file holds the old or the new text.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    _replace(path, lambda file: file.write(text.encode(encoding)))


def as_json(value: Mapping[str, Any]) -> str:
    """Return `value` as indented JSON with a final newline.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` as indented JSON, see `as_json` and `write_atomic`."""
    write_atomic(path, as_json(value))


def write_array(path: Path, values: "NDArray[Any]") -> None:
    """Write `values` to the .npy file `path`, see `write_atomic`; create its folder if absent."""
    import numpy as np  # --help does not need it

    path.parent.mkdir(exist_ok=True)
    _replace(path, lambda file: np.save(file, values))


def write_durable(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or truncate `path`, call `write` with the open file, and flush the content to disk."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    scratch = scratch_path(path)
    try:
        write_durable(scratch, write)
        scratch.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # an error of write() names no file
        scratch.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Flush the content of a file to disk with fsync."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush renames in `folder` to disk; POSIX requires an fsync of the folder for this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush `folder` and every file and folder below it to disk."""
    for path in sorted(folder.rglob("*"), reverse=True):  # content before its folder
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def replace_folder(path: Path, new: Path | None) -> None:
    """Replace the folder `path` with the folder `new`, or delete it if `new` is None.

    If several processes replace it at the same time, the last one wins. For a moment, `path` does
    not exist.
    """
    while True:
        old = scratch_path(path)
        try:
            with suppress(FileNotFoundError):
                path.rename(old)
            if new is not None:
                new.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
        else:
            return
        finally:
            discard(old)


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links, because weights are large; copy files that cannot be linked.

    Raises:
        FileExistsError: `target` exists.
    """
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
