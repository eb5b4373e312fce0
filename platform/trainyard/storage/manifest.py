"""Verify, upload and download folders with a manifest: size and SHA-256 of each file.

The manifest is written and uploaded last, so a folder with a valid manifest is complete.
"""

import fcntl
import hashlib
import json
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.storage.atomic import as_json, sync_folder, write_json
from trainyard.storage.store import Bucket

MANIFEST = "MANIFEST.json"
_DROPPED = "dropped"
"""Key of a manifest with the entries of files that were deleted on purpose."""


def files(path: Path) -> list[Path]:
    """Return the sorted files below a folder, or [path] for a file; [] if `path` does not exist."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sorted(file for file in paths if file.is_file())


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; reads the file in chunks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_of(path: Path) -> dict[str, Any]:
    """Return the manifest entry of a file: its size in `bytes`, and its `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def hashes_of(folder: Path, known: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return manifest entries by path relative to `folder`, for all files below it.

    Entries in `known` are included unchanged, and files of these names are not read.
    """
    known = known or {}
    names = {str(path.relative_to(folder)): path for path in files(folder)}
    return {name: entry_of(path) for name, path in names.items() if name not in known} | {**known}


def fault_of(folder: Path) -> str | None:
    """Return why a folder does not match its manifest, or None if it does.

    Files that the manifest does not list are ignored.

    Raises:
        UserError: This user may not read a file.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"].items()
        expected = [(folder / name, entry["bytes"], entry["sha256"]) for name, entry in entries]
    except PermissionError as error:
        raise _unreadable(folder / MANIFEST) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no valid {MANIFEST}: {type(error).__name__}"
    for path, size, digest in expected:
        try:
            if path.stat().st_size != size:
                return f"{path.name} has {path.stat().st_size} bytes, not {size}"
            if file_digest(path) != digest:
                return f"{path.name} has changed"
        except FileNotFoundError:
            return f"{path.name} is missing"
        except PermissionError as error:
            raise _unreadable(path) from error
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror}"
    return None


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} cannot be read: Permission denied; let this user read it, then run the same command again"
    )


def has_dropped(folder: Path) -> bool:
    """Return whether files of a folder with a valid manifest were deleted by `drop`."""
    return _DROPPED in json.loads((folder / MANIFEST).read_text())


def drop(folder: Path, prefix: str) -> None:
    """Delete the files of a folder whose names start with `prefix`; the manifest keeps their hashes.

    The manifest is replaced first. So a crash leaves a valid folder, with files that no manifest lists.

    Raises:
        OSError: The folder cannot be written, or its manifest cannot be read.
    """
    manifest, names = _without(json.loads((folder / MANIFEST).read_text()), prefix)
    if names:
        write_json(folder / MANIFEST, manifest)
        sync_folder(folder)
    for path in folder.glob(f"{prefix}*"):
        path.unlink()


def drop_objects(bucket: Bucket, name: str, prefix: str) -> None:
    """Do the same as `drop` in the folder `name` of a bucket.

    Raises:
        UserError: The bucket does not answer.
    """
    stored = bucket.read(f"{name}/{MANIFEST}")
    if stored is None:
        return
    manifest, names = _without(json.loads(stored.content), prefix)
    if names:
        bucket.write(f"{name}/{MANIFEST}", as_json(manifest).encode())
    bucket.delete([key for key in bucket.names(name) if key.startswith(f"{name}/{prefix}")])


def _without(manifest: dict[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Return a manifest without files that start with `prefix`, and the names of these files."""
    entries: dict[str, Any] = manifest["files"]
    dropped = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
    kept = {name: entry for name, entry in entries.items() if name not in dropped}
    known = manifest.get(_DROPPED, {})
    return {**manifest, "files": kept, _DROPPED: {**known, **dropped}}, [*dropped]


def upload_folder(bucket: Bucket, folder: Path, name: str, without: Collection[str] = ()) -> None:
    """Upload a folder to objects below `name`, the manifest last; durable on return.

    The files `without`, relative to the folder, are not uploaded.

    Raises:
        UserError: The bucket cannot be written.
    """
    for path in sorted(files(folder), key=lambda path: path.name == MANIFEST):
        if (relative := str(path.relative_to(folder))) not in without:
            bucket.upload(f"{name}/{relative}", path)


def download_folder(bucket: Bucket, name: str, folder: Path) -> str | None:
    """Make `folder` a verified copy of the objects below `name`.

    One process of a node downloads at a time. The next process finds a complete folder.

    Returns:
        None, or why the objects do not match their manifest; then `folder` is unchanged.

    Raises:
        UserError: The bucket cannot be read.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        manifest = bucket.read(f"{name}/{MANIFEST}")
        if manifest is not None and (folder / MANIFEST).exists():
            same = (folder / MANIFEST).read_bytes() == manifest.content
            if same and fault_of(folder) is None:
                return None
        scratch = folder.with_name(f".inprogress-{folder.name}-{uuid.uuid4().hex}")
        try:
            for key in bucket.names(name):
                path = scratch / key.removeprefix(f"{name}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # deleted meanwhile: `fault_of` reports it
                    bucket.download(key, path)
            if (fault := fault_of(scratch)) is None:
                shutil.rmtree(folder, ignore_errors=True)
                scratch.rename(folder)
            return fault
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclude the other processes of this node from the block, by a lock file next to `folder`."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
