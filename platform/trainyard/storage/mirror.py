"""The bucket side of a run folder: each node works in a scratch folder, and the bucket is the truth.

    <url>/<run name>/   as in a folder, but for checkpoints/, see `checkpoints`
    <url>/.cache/       tokenized splits, each with a manifest of hashes

A driver deletes and fetches the scratch folder when it starts, so nothing depends on it. The lease
and the index of checkpoints are replaced by conditional puts alone: of two drivers or attempts that
try at once, the bucket lets one through. Files for people (run.json, metrics.jsonl, …) are put after
checking the lease: a process suspended between check and put could overwrite a newer file.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainyard.errors import SupersededError, UserError
from trainyard.storage.atomic import write_json
from trainyard.storage.lease import LEASE
from trainyard.storage.manifest import MANIFEST, download_folder, files, hashes_of, upload_folder
from trainyard.storage.store import Bucket

ASK_SECONDS = 2.0
"""Maximum delay until workers of another node see a stop request."""
TELL_SECONDS = 5.0
"""Maximum delay until the bucket, and a driver on another node, see the progress of a run."""

_uploading = threading.Lock()
"""Held while a process uploads records: its loop and the writer of its checkpoints both do."""

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return this node's cache folder: $TRAINYARD_CACHE or ~/.cache/trainyard."""
    return Path(os.environ.get("TRAINYARD_CACHE") or "~/.cache/trainyard").expanduser().absolute()


def scratch_folder(url: str) -> Path:
    """Return this node's copy of what is below `url`, in the cache folder."""
    return cache_root() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class Timer:
    """Say once in `seconds` that something is due."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self, seconds: float) -> bool:
        """Return whether more than `seconds` have passed since it was last due."""
        if time.monotonic() - self._last <= seconds:
            return False
        self._last = time.monotonic()
        return True


class Mirror:
    """The objects of one run below a URL, and its scratch folder on this node."""

    def __init__(self, url: str, name: str) -> None:
        self.bucket, self.name = Bucket(url), name
        self.path = scratch_folder(url) / name
        self.asks, self.tells = Timer(), Timer()
        self._built: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}

    def on_this_node(self) -> "Mirror":
        """Return a mirror with the scratch folder of the calling node."""
        return Mirror(self.bucket.url, self.name)

    def key(self, name: str = "") -> str:
        return f"{self.name}/{name}" if name else self.name

    def names(self) -> list[str]:
        """Return the objects of the run but for its lease, relative to the run."""
        prefix = self.key() + "/"
        names = (name.removeprefix(prefix) for name in self.bucket.names(self.key()))
        return sorted(name for name in names if name != LEASE)

    def push(self, *names: str) -> None:
        """Upload files and folders that have changed since they were uploaded from here."""
        with _uploading:
            for path in (path for name in names for path in files(self.path / name)):
                stat = path.stat()
                state, relative = (stat.st_mtime_ns, stat.st_size), str(path.relative_to(self.path))
                if self._sent.get(relative) != state:
                    self.bucket.upload(self.key(relative), path)
                    self._sent[relative] = state

    def pull(self, *names: str) -> None:
        """Download objects in place of the local files of their names."""
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
        """Upload tokenized splits that the bucket lacks, or that were built again here."""
        for folder in tables.values():
            base = f".cache/{folder.name}"
            if folder.name not in self._built and self.bucket.has(f"{base}/{MANIFEST}"):
                continue
            if not (folder / MANIFEST).exists():
                write_json(folder / MANIFEST, {"files": hashes_of(folder)})
            upload_folder(self.bucket, folder, base)

    def pull_table(self, folder: Path) -> bool:
        """Download a tokenized split; return whether the bucket has it undamaged."""
        if download_folder(self.bucket, f".cache/{folder.name}", folder) is None:
            return True
        self._built.add(folder.name)
        return False


@contextmanager
def outages_logged() -> Iterator[None]:
    """Log outages in calls that only inform people and other nodes; commits must not go through it."""
    try:
        yield
    except SupersededError:
        raise
    except UserError as error:
        log.warning("%s", error)
