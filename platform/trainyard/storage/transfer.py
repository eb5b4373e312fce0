"""Folders with a manifest of hashes, to a bucket and back: the manifest goes last, and is believed."""

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainyard.storage.bucket import Bucket
from trainyard.storage.checkpoints import MANIFEST, fault_of


def files(path: Path) -> list[Path]:
    """A file itself, or all files of a folder; none where there is nothing."""
    found = path.rglob("*") if path.is_dir() else [path]
    return sorted(file for file in found if file.is_file())


def upload_folder(bucket: Bucket, folder: Path, name: str) -> None:
    """Copy a folder to objects below `name`; on return they are durable, the manifest the last."""
    for path in sorted(files(folder), key=lambda path: path.name == MANIFEST):
        bucket.upload(f"{name}/{path.relative_to(folder)}", path)


def download_folder(bucket: Bucket, name: str, folder: Path) -> str | None:
    """Make `folder` what the objects below `name` are, if their hashes verify; else says why not.

    One process of a node does it at a time, and the next one finds it done.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
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
                with suppress(
                    FileNotFoundError
                ):  # deleted meanwhile: `fault_of` says what is missing
                    bucket.download(key, path)
            if (fault := fault_of(scratch)) is None:
                shutil.rmtree(folder, ignore_errors=True)
                scratch.rename(folder)
            return fault
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
