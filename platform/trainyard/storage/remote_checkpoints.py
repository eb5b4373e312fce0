"""Checkpoints in a bucket: uploaded whole, then entered in an index that one attempt alone may replace.

    checkpoints/index.json                {"attempt": …, "checkpoints": {"120": "step-00000120-4f1c22ab"}}
    checkpoints/step-00000120-4f1c22ab/   the files of a checkpoint, MANIFEST.json the last

Each attempt uploads under names of its own, so one that comes back from a lost network cannot mix its
files into its successor's; and its entry is refused, for the index is no longer the one it knew.
"""

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from typing_extensions import override

from trainyard.errors import UserError
from trainyard.storage.bucket import Bucket, Conflict, Found, replace_own
from trainyard.storage.checkpoints import CheckpointStore, SupersededError, log
from trainyard.storage.transfer import download_folder, upload_folder


class RemoteCheckpoints(CheckpointStore):
    """The checkpoints of one run, as one attempt at it sees them; `folder` is this node's copy.

    `fetch` brings the run's records here when the attempt claims the run, `publish` puts them into
    the bucket before a checkpoint counts.
    """

    def __init__(
        self,
        folder: Path,
        bucket: Bucket,
        key: str,
        fetch: Callable[[], None],
        publish: Callable[[], None],
    ) -> None:
        super().__init__(folder)
        self._bucket, self._key = bucket, key
        self._fetch, self._publish = fetch, publish
        self._names: dict[int, str] | None = None

    @override
    def claim(self) -> None:
        super().claim()
        while True:
            # Listed before the index is replaced: what came later may be a successor's.
            listed = self._bucket.names(self._key)
            found, names = self._read()
            try:
                self._version = self._bucket.write(
                    self._index, self._entry(names), over=found.version if found else "nothing"
                )
                break
            except Conflict:
                continue
        self._names = names
        kept = tuple(f"{self._key}/{name}/" for name in names.values())
        self._bucket.delete([key for key in listed if not key.startswith((self._index, *kept))])
        self._fetch()

    @override
    def commit(self, step: int, write: Callable[[Path], None]) -> Path:
        path = super().commit(step, write)
        name = f"{path.name}-{self.attempt[:8]}"
        try:
            self._check_index()
            upload_folder(self._bucket, path, f"{self._key}/{name}")
            self._check_index()
            self._publish()
            self._replace({**self._known(), step: name})
        except UserError as error:
            raise UserError(
                f"the checkpoint of step {step} could not be stored ({error}); then run the same command "
                "to go on from the last one that was"
            ) from error
        return path

    @override
    def steps(self) -> list[int]:
        return sorted(self._known())

    @override
    def newest(self) -> tuple[int, Path] | None:
        for step in reversed(self.steps()):
            if (fault := self._download(step)) is None:
                return step, self.path(step)
            self.skipped.append(
                f"{self._known()[step]} is damaged ({fault}); fell back to an older one"
            )
            log.warning(self.skipped[-1])
        return None

    @override
    def bring(self, step: int) -> Path:
        if (fault := self._download(step)) is not None:
            raise UserError(
                f"{self._bucket.url}/{self._key}/{self._known()[step]} is damaged ({fault}); start the "
                "same command again to go on from an older checkpoint, or use --fresh"
            )
        return self.path(step)

    @override
    def keep(self, steps: Collection[int]) -> None:
        self._replace({step: name for step, name in self._known().items() if step in steps})
        for step in super().steps():
            if step not in steps:
                shutil.rmtree(self.path(step))

    @property
    def _index(self) -> str:
        return f"{self._key}/index.json"

    def _known(self) -> dict[int, str]:
        if self._names is None:
            _, self._names = self._read()
        return self._names

    def _read(self) -> tuple[Found | None, dict[int, str]]:
        found = self._bucket.read(self._index)
        if found is None:
            return None, {}
        try:
            names: dict[str, Any] = json.loads(found.content)["checkpoints"]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self._bucket.url}/{self._index} is damaged; use --fresh to start this run anew"
            ) from error
        return found, {int(step): name for step, name in names.items()}

    def _entry(self, names: dict[int, str]) -> bytes:
        return json.dumps({"attempt": self.attempt, "checkpoints": names}, indent=2).encode()

    def _check_index(self) -> None:
        found = self._bucket.read(self._index)
        if found is None or not self._is_own(found.content):
            raise self._superseded()

    def _replace(self, names: dict[int, str]) -> None:
        """Replace the index, then delete what it names no more."""
        before = self._known()
        try:
            self._version = replace_own(
                self._bucket, self._index, self._entry(names), self._version, self._is_own
            )
        except Conflict as error:
            raise self._superseded() from error
        self._names = names
        for name in set(before.values()) - set(names.values()):
            self._bucket.delete(self._bucket.names(f"{self._key}/{name}"))

    def _download(self, step: int) -> str | None:
        name = f"{self._key}/{self._known()[step]}"
        return download_folder(self._bucket, name, self.path(step))

    def _is_own(self, content: bytes) -> bool:
        return bool(json.loads(content)["attempt"] == self.attempt)

    def _superseded(self) -> SupersededError:
        return SupersededError(f"attempt {self.attempt} was superseded; it stops here")
