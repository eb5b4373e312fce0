"""A run in a bucket: it works in a scratch folder on each node, and the bucket is the truth.

    <url>/<run name>/   as in a folder, but for checkpoints/, see `remote.checkpoints`
    <url>/.cache/       tokenized splits, a manifest of hashes with each

The scratch folder is deleted and fetched anew when a driver starts, so nothing depends on it. Who may
run (lease.json) and which checkpoints count (index.json) are replaced by conditional puts alone: of
two drivers or attempts that try at once, the bucket lets one through. What people read besides
(run.json, metrics.jsonl, …) is put after asking whether the run is still ours: of that a process that
stood still for a minute between question and put could overwrite a newer one.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from trainyard.errors import UserError
from trainyard.storage.atomic import write_json
from trainyard.storage.bucket import Bucket
from trainyard.storage.checkpoints import MANIFEST, CheckpointStore, hashes_of
from trainyard.storage.lease import Lease
from trainyard.storage.remote_checkpoints import RemoteCheckpoints
from trainyard.storage.remote_lease import RemoteLease
from trainyard.storage.run_folder import RunFolder, storage_folder
from trainyard.storage.transfer import download_folder, files, upload_folder

ASK_SECONDS = 2.0
"""How late workers of another node may learn that they are to stop."""
TELL_SECONDS = 5.0
"""How late the bucket, and a driver on another node, may learn where the run is."""
log = logging.getLogger(__name__)

RECORDS = ("run.json", "metrics.jsonl", "progress.json")


def open_run(storage_path: str, name: str) -> RunFolder:
    """The run called `name` below `--storage-path`, which is a folder or a URL."""
    if "://" in storage_path:
        return RemoteRun(storage_path, name)
    return RunFolder(storage_folder(storage_path) / name)


def scratch_folder(url: str) -> Path:
    """Where this node keeps its copy of what is below `url`: $TRAINYARD_CACHE or ~/.cache/trainyard."""
    root = Path(os.environ.get("TRAINYARD_CACHE") or "~/.cache/trainyard").expanduser().absolute()
    return root / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class RemoteRun(RunFolder):
    """A run below a URL, and its scratch folder on this node."""

    seen_everywhere = False

    def __init__(self, url: str, name: str) -> None:
        super().__init__(scratch_folder(url) / name)
        self.bucket, self._name = Bucket(url), name
        self._built: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}
        self._asked = self._told = time.monotonic()
        self._asked_to_stop = False

    def __reduce__(self) -> tuple[type["RemoteRun"], tuple[str, str]]:
        return RemoteRun, (self.bucket.url, self._name)

    @override
    def address(self, name: str = "") -> str:
        return f"{self.bucket.url}/{self._key(name)}".rstrip("/")

    @override
    def create(self) -> None:
        Bucket(self.bucket.url, impatient=True).clock()
        super().create()

    @override
    def lease(self, patience: float = 0.0) -> RemoteLease:
        return RemoteLease(self.bucket, self._name, patience)

    @override
    def store(self) -> CheckpointStore:
        return RemoteCheckpoints(
            self.checkpoints,
            self.bucket,
            self._key("checkpoints"),
            fetch=lambda: self._fetch("metrics.jsonl", "progress.json"),
            publish=lambda: self.publish(
                "metrics.jsonl", "progress.json", "predictions", "tensorboard"
            ),
        )

    @override
    def has_model(self) -> bool:
        return self.bucket.has(self._key("model/model.safetensors"))

    @override
    def here(self, tables: Mapping[str, Path]) -> tuple[RunFolder, Mapping[str, Path]]:
        place = RemoteRun(self.bucket.url, self._name)
        place.path.mkdir(parents=True, exist_ok=True)
        found = {split: place.path.parent / ".cache" / path.name for split, path in tables.items()}
        for folder in found.values():
            if not place.find_table(folder):
                raise UserError(
                    f"the tokenized data at {self.bucket.url}/.cache/{folder.name} is gone or damaged; "
                    "delete what is left of it and start the same command again"
                )
        return place, found

    @override
    def fetch(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self._fetch(*RECORDS)
        self.bucket.delete([self._key(path.name) for path in self._requests])

    @override
    def names(self) -> list[str]:
        keep, prefix = self._key(Lease.NAME), self._key() + "/"
        found = (name for name in self.bucket.names(self._key()) if name != keep)
        return sorted({name.removeprefix(prefix).partition("/")[0] for name in found})

    @override
    def clear(self, record: str = "run.json") -> None:
        super().clear(record)
        keep = self._key(Lease.NAME)
        self.bucket.delete([name for name in self.bucket.names(self._key()) if name != keep])

    @override
    def update(self, **fields: Any) -> None:
        super().update(**fields)
        self.publish("run.json")

    @override
    def publish(self, *names: str) -> None:
        for name in names:
            for path in files(self.path / name):
                stat = path.stat()
                state, relative = (stat.st_mtime_ns, stat.st_size), str(path.relative_to(self.path))
                if self._sent.get(relative) != state:
                    self.bucket.upload(self._key(relative), path)
                    self._sent[relative] = state

    @override
    def share(self, tables: Mapping[str, Path]) -> None:
        for folder in tables.values():
            base = f".cache/{folder.name}"
            if folder.name not in self._built and self.bucket.has(f"{base}/{MANIFEST}"):
                continue
            if not (folder / MANIFEST).exists():
                write_json(folder / MANIFEST, {"files": hashes_of(folder)})
            upload_folder(self.bucket, folder, base)

    @override
    def find_table(self, folder: Path) -> bool:
        if folder.exists():
            return True
        if download_folder(self.bucket, f".cache/{folder.name}", folder) is None:
            return True
        self._built.add(folder.name)
        return False

    @override
    def wants_stop(self) -> bool:
        if super().wants_stop():
            return True
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._asked = time.monotonic()
            with _outages_logged():
                self._asked_to_stop = any(
                    self.bucket.has(self._key(path.name)) for path in self._requests
                )
        return self._asked_to_stop

    @override
    def request(self, path: Path, reason: str | None) -> None:
        super().request(path, reason)
        with _outages_logged():
            if reason is None:
                self._sent.pop(path.name, None)
                self.bucket.delete([self._key(path.name)])
            else:
                self.publish(path.name)

    @override
    def relay(self) -> None:
        with _outages_logged():
            self.publish(self.stop_request.name)  # a signal's handler asks nobody but this disk
            if time.monotonic() - self._told < TELL_SECONDS:
                return
            self._told = time.monotonic()
            found = self.bucket.read(self._key("progress.json"))
            told: dict[str, Any] = json.loads(found.content) if found else {}
            if told.get("step", 0) > self.progress().get("step", 0):
                super().set_progress(**told)

    @override
    def set_progress(self, **fields: Any) -> None:
        super().set_progress(**fields)
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            with _outages_logged():
                self.publish("progress.json")

    @override
    def tidy(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _requests(self) -> tuple[Path, Path]:
        return self.stop_request, self.restart_request

    def _key(self, name: str = "") -> str:
        return f"{self._name}/{name}" if name else self._name

    def _fetch(self, *names: str) -> None:
        """Bring objects here, in place of what is here under their names."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
            if (found := self.bucket.read(self._key(name))) is not None:
                (self.path / name).write_bytes(found.content)


@contextmanager
def _outages_logged() -> Iterator[None]:
    """What only keeps people and other nodes informed must not end a run: its checkpoints will."""
    try:
        yield
    except UserError as error:
        log.warning("%s", error)
