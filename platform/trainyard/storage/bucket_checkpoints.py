"""Checkpoints of a run in a bucket.

A checkpoint is uploaded completely, then added to an index that only one attempt may replace. With
fsdp and deepspeed, each worker uploads its part.

    checkpoints/index.json                {"attempt": …, "checkpoints": {"120": "step-00000120-4f1c22ab"}}
    checkpoints/step-00000120-4f1c22ab/   the files of a checkpoint, MANIFEST.json the last

Each attempt uploads under its own names, and a node's copies have the same names. So an attempt
that returns after a network outage cannot mix its files with those of its successor, nor delete
them. Its index entry is rejected, because the index has changed since it was read.
"""

import json
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import override

from trainyard.errors import DamagedRun, SupersededError, UserError
from trainyard.storage.checkpoints import OPTIMIZER, CheckpointStore, older, unwritable, write_files
from trainyard.storage.lease import Fence
from trainyard.storage.manifest import download_folder, drop_objects, upload_folder
from trainyard.storage.store import Bucket, Conflict, Stored, replace_own

LEFTOVER_SECONDS = 3600
"""Minimum age of files that are deleted on a node without rank 0. No worker writes or loads so long."""


class BucketCheckpoints(CheckpointStore):
    """Checkpoints of one run in a bucket.

    Args:
        folder: Folder of this node's copies.
        bucket: Bucket of the checkpoints.
        key: Name of their folder in the bucket.
        fetch: Function that downloads the run's records to this node, called by `claim`.
        publish: Function that uploads the run's records, called before a commit.
        fence: See `CheckpointStore`.
    """

    def __init__(
        self,
        folder: Path,
        bucket: Bucket,
        key: str,
        fetch: Callable[[], None] = lambda: None,
        publish: Callable[[], None] = lambda: None,
        fence: Fence | None = None,
    ) -> None:
        super().__init__(folder, fence, publish)
        self._bucket, self._key, self._fetch = bucket, key, fetch
        self._names: dict[int, str] | None = None

    @override
    def claim(self) -> None:
        self.attempt = uuid.uuid4().hex
        while True:
            # List the objects before replacing the index: later objects may be a successor's.
            listed = self._bucket.names(self._key)
            stored, names = self._read()
            self._check_fence()  # after the read: the index of a later driver must not be replaced
            try:
                self._version = self._bucket.write(
                    self._index, self._entry(names), over=stored.version if stored else "nothing"
                )
                break
            except Conflict:
                continue
        self._begin_attempt()
        for path in self.folder.glob("step-*"):
            if path.name not in names.values():
                self._delete(path)
        self._names = names
        prefixes = tuple(f"{self._key}/{name}/" for name in names.values())
        self._bucket.delete([key for key in listed if not key.startswith((self._index, *prefixes))])
        self._fetch()

    @override
    def commit(self, step: int, write: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        uploaded: Mapping[str, Any] = {}

        def fill(scratch: Path) -> Mapping[str, Any]:
            nonlocal uploaded
            uploaded = write(scratch) or {}
            return uploaded

        name = self._final(step).name
        try:
            with _storing(step):
                self._check_index()
            path = super().commit(step, fill)
            with _storing(step):
                self._check_index()
                upload_folder(self._bucket, path, f"{self._key}/{name}", without=uploaded)
                self._check_index()
                self._publish()
        except Exception:
            self._discard(name)
            raise
        with _storing(step):
            self._replace({**self._index_names(), step: name})
        return path

    def _discard(self, name: str) -> None:
        """Delete what was uploaded of a checkpoint that failed, if the bucket answers at once.

        Raises:
            SupersededError: A newer attempt has claimed the run; this is why the checkpoint failed.
        """
        brief = Bucket(self._bucket.url, impatient=True)
        try:
            stored, names = self._read(brief)
            if name not in names.values():
                brief.delete(brief.names(f"{self._key}/{name}"))
        except UserError:  # the next attempt's `claim` deletes it
            return
        if stored is None or _attempt_of(stored) != self.attempt:
            raise self._superseded()

    @override
    def write_part(
        self, step: int, attempt: str, write: Callable[[Path], Iterable[Path]]
    ) -> dict[str, Any]:
        scratch = self._scratch(step, attempt)
        if scratch.is_dir():  # on rank 0's node; the files stay in its copy of the checkpoint
            return self._upload_part(step, attempt, scratch, write)
        self._delete_leftovers()
        scratch = scratch.with_name(f"{scratch.name}-{uuid.uuid4().hex}")
        try:
            scratch.mkdir(parents=True)
            return self._upload_part(step, attempt, scratch, write)
        except OSError as error:
            place = f"{self.folder} on node {platform.node()}"
            raise unwritable(step, place, error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _upload_part(
        self, step: int, attempt: str, scratch: Path, write: Callable[[Path], Iterable[Path]]
    ) -> dict[str, Any]:
        entries = write_files(scratch, write)
        keys = {name: f"{self._key}/{_object(step, attempt)}/{name}" for name in entries}
        with _storing(step):
            for name, key in keys.items():
                self._bucket.upload(key, scratch / name)
            stored = self._bucket.read(self._index)
            if stored is None or _attempt_of(stored) != attempt:  # no other process deletes them
                self._bucket.delete(list(keys.values()))
                raise SupersededError(f"attempt {attempt} was superseded; it stops here")
        return entries

    def _delete_leftovers(self) -> None:
        """Delete old files on a node without rank 0: of killed workers, and copies for a resume.

        `claim` and `keep` do this on the node of rank 0.
        """
        for path in [*self.folder.glob(".inprogress-*"), *self.folder.glob("step-*")]:
            with suppress(OSError):  # another worker of this node deletes it, too
                if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    shutil.rmtree(path)

    @override
    def path(self, step: int) -> Path:
        return self.folder / self._index_names().get(step, super().path(step).name)

    @override
    def _final(self, step: int) -> Path:
        return self.folder / _object(step, str(self.attempt))

    @override
    def steps(self) -> list[int]:
        return sorted(self._index_names())

    @override
    def bring(self, step: int) -> Path:
        if (fault := self._download(step)) is not None:
            name = f"{self._bucket.url}/{self._key}/{self.path(step).name}"
            raise UserError(
                f"{name} is damaged ({fault}); start the same command again to resume from an older "
                "checkpoint, or use --fresh"
            )
        return self.path(step)

    @override
    def _fault(self, step: int) -> str | None:
        return self._download(step)

    @override
    def _drop(self, step: int) -> None:
        drop_objects(self._bucket, f"{self._key}/{self._name(step)}", OPTIMIZER)

    @override
    def _name(self, step: int) -> str:
        return self._index_names()[step]

    @override
    def keep(self, steps: Collection[int], until: int | None = None) -> None:
        names = self._index_names()
        doomed = {step for step in older(names, until) if step not in steps}
        self._replace({step: name for step, name in names.items() if step not in doomed})

    @override
    def _publish_local(self) -> None:
        """Publish nothing: `commit` publishes after the upload."""

    @property
    def _index(self) -> str:
        return f"{self._key}/index.json"

    def _index_names(self) -> dict[int, str]:
        if self._names is None:
            _, self._names = self._read()
        return self._names

    def _read(self, bucket: Bucket | None = None) -> tuple[Stored | None, dict[int, str]]:
        stored = (bucket or self._bucket).read(self._index)
        if stored is None:
            return None, {}
        try:
            names: dict[str, Any] = json.loads(stored.content)["checkpoints"]
        except (ValueError, KeyError) as error:
            raise DamagedRun(
                f"{self._bucket.url}/{self._index} is damaged",
                remedy="use --fresh to start this run anew",
            ) from error
        return stored, {int(step): name for step, name in names.items()}

    def _entry(self, names: dict[int, str]) -> bytes:
        return json.dumps({"attempt": self.attempt, "checkpoints": names}, indent=2).encode()

    def _check_index(self) -> None:
        self._check_fence()
        stored = self._bucket.read(self._index)
        if stored is None or not self._is_own(stored.content):
            raise self._superseded()

    def _replace(self, names: dict[int, str]) -> None:
        self._check_fence()
        before = self._index_names()
        try:
            self._version = replace_own(
                self._bucket, self._index, self._entry(names), self._version, self._is_own
            )
        except Conflict as error:
            raise self._superseded() from error
        self._names = names
        for name in set(before.values()) - set(names.values()):
            self._bucket.delete(self._bucket.names(f"{self._key}/{name}"))
            if (self.folder / name).exists():
                self._delete(self.folder / name)

    def _download(self, step: int) -> str | None:
        if (name := self._index_names().get(step)) is None:
            return "the index of checkpoints does not list it"
        return download_folder(self._bucket, f"{self._key}/{name}", self.path(step))

    def _is_own(self, content: bytes) -> bool:
        return bool(json.loads(content)["attempt"] == self.attempt)

    def _superseded(self) -> SupersededError:
        return SupersededError(f"attempt {self.attempt} was superseded; it stops here")


def _object(step: int, attempt: str) -> str:
    """Return the name of an attempt's checkpoint, in the bucket and on its nodes."""
    return f"step-{step:08d}-{attempt[:8]}"


def _attempt_of(index: Stored) -> Any:
    return json.loads(index.content)["attempt"]


@contextmanager
def _storing(step: int) -> Iterator[None]:
    """Name the checkpoint in an error of the bucket, and the way to resume."""
    try:
        yield
    except SupersededError:
        raise
    except UserError as error:
        raise UserError(
            f"the checkpoint of step {step} could not be stored: {error.problem}",
            remedy=f"{error.remedy or 'check the bucket'}, then run the same command to resume from "
            "the last stored checkpoint",
        ) from error
