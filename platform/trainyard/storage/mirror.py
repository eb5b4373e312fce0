"""A run folder in a bucket: each node works in a scratch folder, and the bucket is authoritative.

    <url>/<run name>/   files of a run folder; for checkpoints/ see `checkpoints`
    <url>/.cache/       tokenized splits, each with a manifest of hashes

A starting driver deletes its scratch folder and downloads the records. Its workers empty the
scratch folders of their nodes. So no run depends on a scratch folder. Conditional puts replace the
lease, run.json and the index of checkpoints: of two concurrent writers, one succeeds. Other files,
such as metrics.jsonl, are put after a check of the lease. A process suspended between check and put
could overwrite a newer file.
"""

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainyard.errors import SupersededError, UserError
from trainyard.storage.atomic import write_json
from trainyard.storage.lease import LEASE, Fence
from trainyard.storage.manifest import (
    MANIFEST,
    download_folder,
    files,
    hashes_of,
    locked,
    upload_folder,
)
from trainyard.storage.store import Bucket

ASK_SECONDS = 2.0
"""Time between two checks of the lease and queries of the bucket for requests, by a worker."""
TELL_SECONDS = 5.0
"""Minimum time between two uploads of progress.json by a worker, or two downloads by the driver."""

DRIVER = ".driver"
"""File in a scratch folder that holds the id of the lease of the driver it belongs to."""

_uploading = threading.Lock()
"""Lock for uploads of records, which several threads of a process make."""

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return this node's cache folder: $TRAINYARD_CACHE or ~/.cache/trainyard."""
    return Path(os.environ.get("TRAINYARD_CACHE") or "~/.cache/trainyard").expanduser().absolute()


def scratch_folder(url: str) -> Path:
    """Return the scratch folder of `url` in this node's cache folder, named by a hash of `url`."""
    return cache_root() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class Timer:
    """Rate limiter: `is_due` is true at most once per interval."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self, seconds: float) -> bool:
        """Return whether more than `seconds` have passed since the last true result or creation."""
        if time.monotonic() - self._last <= seconds:
            return False
        self._last = time.monotonic()
        return True


class Mirror:
    """Objects of one run in a bucket, and its scratch folder on this node.

    Args:
        url: URL of the folder of all runs.
        name: Name of the run.

    Raises:
        UserError: In the constructor, the scheme of `url` is not supported. In any method, the
            bucket refuses access or does not answer.
    """

    def __init__(self, url: str, name: str) -> None:
        self.bucket, self.name = Bucket(url), name
        self.brief = Bucket(url, impatient=True)
        """The same bucket with short timeouts, for requests that are repeated anyway."""
        self.path = scratch_folder(url) / name
        self.tells = Timer()
        self._built: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}

    def on_this_node(self) -> "Mirror":
        """Return a mirror of the same run with the scratch folder of the calling node."""
        return Mirror(self.bucket.url, self.name)

    def mark_as_of(self, driver: str) -> None:
        """Record the id of the driver's lease in the scratch folder."""
        (self.path / DRIVER).write_text(driver)

    def is_of(self, driver: str) -> bool:
        """Return whether the scratch folder exists and is marked by the driver with this lease."""
        try:
            return (self.path / DRIVER).read_text() == driver
        except FileNotFoundError:
            return False

    def empty_unless_of(self, fence: Fence) -> None:
        """Empty the scratch folder if it is not marked by the driver of `fence`.

        Otherwise, files of a run that `--fresh` has replaced would be uploaded as those of the new
        run. A lock serializes the processes of a node.

        Raises:
            SupersededError: Another driver has taken over the run; the folder may be its own.
            UserError: The bucket does not answer.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            if self.is_of(fence.id):
                return
            fence.check()
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(exist_ok=True)
            self.mark_as_of(fence.id)

    def key(self, name: str = "") -> str:
        return f"{self.name}/{name}" if name else self.name

    def names(self) -> list[str]:
        """Return the sorted names of the run's objects, relative to the run, except its lease."""
        prefix = self.key() + "/"
        names = (name.removeprefix(prefix) for name in self.bucket.names(self.key()))
        return sorted(name for name in names if name != LEASE)

    def push(self, *names: str) -> None:
        """Upload files and folders, except files unchanged since the last upload by this mirror."""
        with _uploading:
            self._push(self.bucket, *names)

    def push_at_once(self, name: str) -> None:
        """Do as `push` now, or not at all: never wait for another upload or for long.

        Raises:
            UserError: The bucket does not answer within seconds.
        """
        if _uploading.acquire(blocking=False):
            try:
                self._push(self.brief, name)
            finally:
                _uploading.release()

    def _push(self, bucket: Bucket, *names: str) -> None:
        for path in (path for name in names for path in files(self.path / name)):
            stat = path.stat()
            state, relative = (stat.st_mtime_ns, stat.st_size), str(path.relative_to(self.path))
            if self._sent.get(relative) != state:
                bucket.upload(self.key(relative), path)
                self._sent[relative] = state

    def pull(self, *names: str) -> None:
        """Replace local files with objects of the same names; delete a file without an object."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
            if (stored := self.bucket.read(self.key(name))) is not None:
                (self.path / name).write_bytes(stored.content)

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        for name in names:
            self._sent.pop(name, None)
        self.bucket.delete([self.key(name) for name in names])

    def push_tables(self, tables: Mapping[str, Path]) -> None:
        """Upload tokenized splits that the bucket lacks, or that `pull_table` found damaged."""
        for folder in tables.values():
            base = f".cache/{folder.name}"
            if folder.name not in self._built and self.bucket.has(f"{base}/{MANIFEST}"):
                continue
            with locked(folder):  # two drivers of one node share the folder
                if not (folder / MANIFEST).exists():
                    write_json(folder / MANIFEST, {"files": hashes_of(folder)})
            upload_folder(self.bucket, folder, base)

    def pull_table(self, folder: Path) -> bool:
        """Download a tokenized split to `folder`; return False if the bucket has no valid copy."""
        if download_folder(self.bucket, f".cache/{folder.name}", folder) is None:
            return True
        self._built.add(folder.name)
        return False


@contextmanager
def outages_logged() -> Iterator[None]:
    """Log an outage of the bucket in the block as a warning; SupersededError still propagates.

    It is for progress and requests, whose loss must not end a run. Never wrap a commit in it.
    """
    try:
        yield
    except SupersededError:
        raise
    except UserError as error:
        log.warning("%s", error)
