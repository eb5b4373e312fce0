"""Who may run under a name in a bucket: `lease.Lease`, by conditional puts and the bucket's clock."""

import json
import logging
import threading
import time
from typing import Any, Self

from trainyard.errors import UserError
from trainyard.storage.bucket import Bucket, Conflict, Version, replace_own
from trainyard.storage.lease import HEARTBEAT_SECONDS, Lease, lives, refusal, this_process

log = logging.getLogger(__name__)


class RemoteLease:
    """The right to run under a name, held by one driver at a time, renewed while it lives.

    Taking, renewing and giving back each replace the object that was read, or fail: there is no
    moment at which two can hold it. It is given back by a mark and not by deleting it, for a delete
    asks for no version.

    Raises:
        UserError: on entry, when another driver holds it, and still does after `patience` seconds.
    """

    def __init__(self, bucket: Bucket, run: str, patience: float = 0.0) -> None:
        self._bucket, self._run, self._patience = bucket, run, patience
        self._key = f"{run}/{Lease.NAME}"
        self._record = this_process()
        self._version: Version = {}
        self._released = threading.Event()

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._patience
        while (holder := self._take()) is not None:
            if time.monotonic() >= deadline:
                raise refusal(f"run '{self._run}'", holder)
            time.sleep(1)
        self._heart = threading.Thread(target=self._renew, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._heart.join(timeout=5)
        try:
            self._replace(released=True)
        except Conflict:
            log.warning("lease of run %s was taken over", self._run)
        except UserError as error:  # it expires by itself
            log.warning("lease of run %s not given back: %s", self._run, error)

    def check(self) -> None:
        """Raise UserError when another driver has taken the run over, this one being thought dead."""
        found = self._bucket.read(self._key)
        if found is None or not self._is_own(found.content):
            raise refusal(f"run '{self._run}'", json.loads(found.content) if found else {})

    def _take(self) -> dict[str, Any] | None:
        """Take the lease; returns who holds it where that is not possible."""
        found = self._bucket.read(self._key)
        holder: dict[str, Any] = json.loads(found.content) if found else {}
        if found and not holder.get("released"):
            age = (self._bucket.clock() - found.modified).total_seconds()
            if lives(holder, age):
                return holder
        content = json.dumps(self._record).encode()
        try:
            self._version = self._bucket.write(
                self._key, content, over=found.version if found else "nothing"
            )
        except Conflict:
            found = self._bucket.read(self._key)
            if found is None or not self._is_own(found.content):  # else the first answer was lost
                return json.loads(found.content) if found else {}
            self._version = found.version
        return None

    def _renew(self) -> None:
        beat = 0
        while not self._released.wait(HEARTBEAT_SECONDS):
            beat += 1
            try:
                self._replace(beat=beat)
            except Conflict:
                log.warning("lease of run %s was taken over", self._run)
                return
            except UserError as error:  # the next beat may get through
                log.warning("lease of run %s not renewed: %s", self._run, error)

    def _replace(self, **more: Any) -> None:
        content = json.dumps({**self._record, **more}).encode()
        self._version = replace_own(self._bucket, self._key, content, self._version, self._is_own)

    def _is_own(self, content: bytes) -> bool:
        return bool(json.loads(content)["id"] == self._record["id"])
