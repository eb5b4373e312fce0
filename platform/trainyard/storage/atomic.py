"""Writes that survive a crash: a file or folder is there whole under its name, or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; after a crash it holds the old text or the new, never a mixture."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write does not know where it failed
        scratch.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_atomic`, as JSON for people and machines."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Replace `path` (.npy) by `values`, whole or not at all; its folder is made."""
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        np.save(file, values)
    scratch.replace(path)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (POSIX asks for an fsync of the folder itself)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder`, and the folder itself, durable."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
