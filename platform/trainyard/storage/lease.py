"""Who may run under a name: one driver at a time."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from trainyard.errors import UserError

HEARTBEAT_SECONDS = 10
EXPIRY_SECONDS = 60

RENAME = "choose another --run-name"

log = logging.getLogger(__name__)


class Lease:
    """The right to run under a name, held by one driver at a time, renewed while it lives.

    A lease whose holder is gone is taken over: at once when it was a process of this host that no
    longer exists, after `EXPIRY_SECONDS` without a heartbeat when it was elsewhere.

    Args:
        folder: Where the lease is kept.
        patience: Seconds to wait for another driver.
        name: Of the lease's file.
        what: What is run, for the sentence that refuses. Default: the run of the folder's name.
        remedy: What else can be done about it.

    Raises:
        UserError: on entry, when another driver holds it, and still does after `patience` seconds.
    """

    NAME = "lease.json"

    def __init__(
        self,
        folder: Path,
        patience: float = 0.0,
        *,
        name: str = NAME,
        what: str | None = None,
        remedy: str = RENAME,
    ) -> None:
        self._path, self._patience = folder / name, patience
        self._what, self._remedy = what or f"run '{folder.name}'", remedy
        self._record = this_process()
        self._released = threading.Event()

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._patience
        while (handle := self._take()) is None:
            if time.monotonic() >= deadline:
                raise self._refusal()
            time.sleep(0.2)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self._record, file)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise unwritable(self._path.parent, error) from error
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._holder().get("id") == self._record["id"]:
            self._path.unlink(missing_ok=True)

    def _take(self) -> int | None:
        self._remove_if_dead()
        try:
            return os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None

    def check(self) -> None:
        """Raise UserError when another driver has taken the run over, this one being thought dead."""
        if self._holder().get("id") != self._record["id"]:
            raise self._refusal()

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                if self._holder().get("id") == self._record["id"]:
                    os.utime(self._path)
            except OSError as error:  # shared storage comes and goes: the next beat may get through
                log.warning("lease %s not renewed: %s", self._path, error)

    def _holder(self) -> dict[str, Any]:
        try:
            holder: dict[str, Any] = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return holder

    def _refusal(self) -> UserError:
        return refusal(self._what, self._holder(), self._remedy)

    def _remove_if_dead(self) -> None:
        try:
            age = time.time() - self._path.stat().st_mtime
        except FileNotFoundError:
            return
        holder = self._holder()
        if lives(holder, age):
            return
        # Of several that find it dead, the rename succeeds for one alone. One that was slow may
        # have taken the new holder's lease instead: it gives that back.
        taken = self._path.with_name(f".{self._path.name}-{self._record['id']}")
        try:
            self._path.rename(taken)
        except FileNotFoundError:
            return
        if json.loads(taken.read_text() or "{}").get("id") != holder.get("id"):
            os.link(taken, self._path)
        taken.unlink()


def unwritable(folder: Path, error: OSError) -> UserError:
    """What is said of a folder that cannot be written."""
    return UserError(
        f"--storage-path: {folder} cannot be written ({error.strerror}); give a folder that can, seen "
        "by every node, or make room"
    )


def this_process() -> dict[str, Any]:
    """What a lease says of its holder."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "processes": _process_table(),
        "pid": pid,
        "started": _start_time(pid),
        "id": uuid.uuid4().hex,
    }


def lives(holder: Mapping[str, Any], age: float) -> bool:
    """Whether the holder of a lease, renewed `age` seconds ago, is to be taken for alive."""
    if (holder.get("host"), holder.get("processes")) == (socket.gethostname(), _process_table()):
        return bool(_start_time(holder["pid"]) == holder["started"])
    return age < EXPIRY_SECONDS


def refusal(what: str, holder: Mapping[str, Any], remedy: str = RENAME) -> UserError:
    """What the second driver is told."""
    return UserError(
        f"{what} is already being run by process {holder.get('pid')} on {holder.get('host')}; "
        f"wait for it, stop it, or {remedy}"
    )


def _start_time(pid: int) -> float | None:
    """When a process of this host was started; None when there is none. Tells reused ids apart."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _process_table() -> str | None:
    """Names the table that process ids of this host are from: containers have their own, and may
    share the host's name, as may two machines: the kernel tells what it was called at boot.
    """  # noqa: D205
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{Path('/proc/self/ns/pid').readlink()} {boot}"
    except OSError:  # not on Linux
        return None
