"""Leases: one driver at a time runs under a name; its workers check the lease before they write."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from trainyard.errors import HeldError, SupersededError, UserError
from trainyard.storage.store import Conflict, Store, Stored, Version, replace_own

LEASE = "lease.json"
HEARTBEAT_SECONDS = 10
EXPIRY_SECONDS = 60
"""Time since the last renewal after which a driver counts as dead."""
POLL_SECONDS = 0.2

RENAME = "choose another --run-name"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fence:
    """Handle of a lease; workers check before they write that their driver still holds the lease.

    Attributes:
        store: Storage of the lease.
        name: Name of the lease in `store`.
        id: Id of the holder.
        what: Job of the lease, for errors: "run 'demo'".
        above: Fence of the sweep or suite that the job belongs to.
    """

    store: Store
    name: str
    id: str
    what: str
    above: "Fence | None" = None

    def check(self) -> None:
        """Check that this lease and all leases above it are still held.

        Raises:
            SupersededError: One of the leases was released or taken over.
            UserError: The storage does not answer.
        """
        if self.above is not None:
            self.above.check()
        holder = _holder(self.store.read(self.name))
        if not _is_held(holder, self.id):
            raise superseded(self.what, holder)


class Lease:
    """Exclusive right of one driver to run under a name; a context manager that renews the lease.

    Each write is conditional on the content read before, so two drivers never hold a lease at once.
    A lease is taken over at once if its holder was a process of this host that no longer exists.
    Any other lease is taken over after `EXPIRY_SECONDS` without renewal, by the storage's clock.

    Args:
        store: Storage of the lease.
        name: Name of the lease in `store`.
        what: Job of the lease, for errors: "run 'demo'".
        patience: Seconds to wait for another driver.
        remedy: Alternative to waiting, for the error.

    Raises:
        HeldError: On entry, another driver still holds the lease after `patience` seconds.
        UserError: On entry, the storage does not answer.
    """

    def __init__(
        self, store: Store, name: str, what: str, patience: float = 0.0, remedy: str = RENAME
    ) -> None:
        self._store, self._name, self._what = store, name, what
        self._patience, self._remedy = patience, remedy
        self._record = this_process()
        self.id: str = self._record["id"]
        self._version: Version = {}
        self._released = threading.Event()
        self._lost = threading.Event()

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._patience
        while (holder := self._take()) is not None:
            if time.monotonic() >= deadline:
                raise HeldError(
                    f"{self._what} is already being run by {_named(holder)}; wait for it, stop it, or "
                    f"{self._remedy}"
                )
            time.sleep(POLL_SECONDS)
        self._renewed = time.monotonic()
        self._heart = threading.Thread(target=self._renew, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._released.set()
        self._heart.join(timeout=5)
        mark = json.dumps({**self._record, "released": True}).encode()
        while True:
            try:
                stored = self._store.read(self._name)
                if stored is None or not self._is_own(stored.content):
                    if not any(isinstance(part, SupersededError) for part in raised):
                        log.warning("the lease of %s was taken over", self._what)
                else:
                    self._store.retire(self._name, mark, stored.version)
            except Conflict:
                continue  # a last heartbeat has changed the version
            except UserError as error:  # the lease expires later
                log.warning("the lease of %s was not given back: %s", self._what, error)
            return

    def fence(self, above: Fence | None = None) -> Fence:
        """Return the fence of this lease; `above` is the fence of the enclosing sweep or suite."""
        return Fence(self._store, self._name, self.id, self._what, above)

    def check(self) -> None:
        """Check that this driver still holds the lease.

        Raises:
            SupersededError: Another driver has taken the lease over.
            UserError: The storage does not answer.
        """
        self.fence().check()

    def poll(self) -> None:
        """Call `check` after a lost lease, or after `EXPIRY_SECONDS` without a successful renewal.

        Otherwise the storage is not read, so a short outage does not end the job.

        Raises:
            SupersededError: Another driver has taken the lease over.
            UserError: The storage does not answer.
        """
        if self._lost.is_set() or time.monotonic() - self._renewed > EXPIRY_SECONDS:
            self.check()

    def _take(self) -> dict[str, Any] | None:
        """Take the lease and return None, or return the record of the current holder."""
        stored = self._store.read(self._name)
        holder = _holder(stored)
        if stored is not None and not holder.get("released"):
            age = (self._store.clock() - stored.modified).total_seconds()
            if lives(holder, age):
                if age < -HEARTBEAT_SECONDS:
                    self._stamp(stored)
                return holder
        content = json.dumps(self._record).encode()
        try:
            self._version = self._store.write(
                self._name, content, over=stored.version if stored else "nothing"
            )
        except Conflict:
            stored = self._store.read(self._name)
            if stored is None or not self._is_own(stored.content):  # else the answer was lost
                return _holder(stored)
            self._version = stored.version
        return None

    def _stamp(self, stored: Stored) -> None:
        """Rewrite a lease whose time is in the future, because the storage's clock was set back.

        A living holder renews the lease as before. The lease of a dead holder expires from now on.
        """
        with suppress(Conflict):
            self._store.write(self._name, stored.content, over=stored.version)

    def _renew(self) -> None:
        beat = 0
        while not self._released.wait(HEARTBEAT_SECONDS):
            beat += 1
            content = json.dumps({**self._record, "beat": beat}).encode()
            try:
                self._version = replace_own(
                    self._store, self._name, content, self._version, self._is_own
                )
            except Conflict:
                self._lost.set()
                return
            except UserError as error:  # the next heartbeat may succeed
                log.warning("the lease of %s was not renewed: %s", self._what, error)
            else:
                self._renewed = time.monotonic()

    def _is_own(self, content: bytes) -> bool:
        """Return whether `content` is this lease, unreleased: no heartbeat may undo a release."""
        return _is_held(_parsed(content), self.id)


def this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "processes": _process_table(),
        "pid": pid,
        "ticks": _state(pid)[1],
        "id": uuid.uuid4().hex,
    }


def lives(holder: Mapping[str, Any], age: float) -> bool:
    """Return whether the holder of a lease that was renewed `age` seconds ago counts as alive.

    On the holder's host, its process must exist. An existing process must still renew its lease: it
    may hang or be suspended.
    """
    same_table = (holder.get("host"), holder.get("processes")) == (
        socket.gethostname(),
        _process_table(),
    )
    return age < EXPIRY_SECONDS and not (same_table and _is_gone(holder))


def superseded(what: str, holder: Mapping[str, Any]) -> SupersededError:
    return SupersededError(
        f"{what} was taken over by {_named(holder)}, because this driver had not renewed its lease; it "
        "ends here and writes nothing more"
    )


def _named(holder: Mapping[str, Any]) -> str:
    if "pid" not in holder:
        return "another driver"
    return f"process {holder['pid']} on {holder.get('host')}"


def _holder(stored: Stored | None) -> dict[str, Any]:
    return {} if stored is None else _parsed(stored.content)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:  # older versions create an empty file first
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_held(holder: Mapping[str, Any], lease_id: str) -> bool:
    return holder.get("id") == lease_id and not holder.get("released")


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder's process has ended: a zombie, or its id is free or reused."""
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # the process belongs to another user
        pass
    state, ticks = _state(holder["pid"])
    # Leases of older versions have no ticks: then the heartbeat decides.
    return state in {"Z", "X"} or (
        None not in (ticks, before := holder.get("ticks")) and ticks != before
    )


def _state(pid: int) -> tuple[str, int | None]:
    """Return the state letter of a process, and its start in clock ticks since boot.

    Unlike a time of day, ticks do not change when the clock is set. Returns ("", None) if /proc has
    no such process, does not exist, or hides processes of other users.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", None
    return fields[0], int(fields[19])


def _process_table() -> str | None:
    """Identify the table of process ids by PID namespace and boot id; return None outside Linux.

    Each container has its own namespace, but containers may share a host name. Machines of equal
    host name and namespace differ in the boot id.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{Path('/proc/self/ns/pid').readlink()} {boot}"
    except OSError:  # not on Linux
        return None
