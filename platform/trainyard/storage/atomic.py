"""Crash-safe writes: a file or folder is complete under its name, or absent."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from numpy.typing import NDArray


def scratch_path(path: Path) -> Path:
    """Return a hidden name next to `path`; process ids alone would collide between containers."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def scratch_pattern(name: str | None = None) -> str:
    """Return the glob pattern of scratch files of a name, or of all; a crash leaves them behind."""
    return f".{'*' if name is None else escape(name)}.*.tmp"


def discard(path: Path) -> None:
    """Delete a scratch file, or a scratch folder with what it holds."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; after a crash it holds the old text or the new, never a mixture."""
    _replace(path, lambda file: file.write(text.encode()))


def as_json(value: Mapping[str, Any]) -> str:
    """Return the content of a record: indented JSON."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Call `write_atomic` with `value` as indented JSON."""
    write_atomic(path, as_json(value))


def write_array(path: Path, values: "NDArray[Any]") -> None:
    """Replace `path` (.npy) by `values`, like `write_atomic`; create its folder."""
    import numpy as np  # which --help does without

    path.parent.mkdir(exist_ok=True)
    _replace(path, lambda file: np.save(file, values))


def write_durable(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file and make its content durable."""
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
        error.filename = error.filename or str(path)  # a write does not know where it failed
        scratch.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (POSIX asks for an fsync of the folder itself)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder`, and `folder` itself, durable."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds, then the folder
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the file system can: weights are large."""
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
