"""The folder of a run: what it holds, who may write it, and what people can read in it.

run.json       config, versions, data fingerprint, status, result
metrics.jsonl  one line per logged step and per evaluation
progress.json  where the run is now
model/         the best checkpoint, for plain transformers
predictions/   SPLIT.npy: logits of the best checkpoint, float32 [rows, labels], in row order
checkpoints/ tensorboard/ ledger/
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from trainyard.errors import UserError
from trainyard.files import write_atomic, write_json
from trainyard.stopwatch import add

HEARTBEAT_SECONDS = 10
EXPIRY_SECONDS = 60

log = logging.getLogger(__name__)


def storage_folder(path: str) -> Path:
    """`--storage-path` as a folder: absolute, for workers have another working directory.

    Raises:
        UserError: for a URL.
    """
    if "://" in path:
        raise UserError(
            f"--storage-path {path} is a URL, which runs cannot be written to yet; mount it and give "
            "the folder"
        )
    return Path(path).expanduser().absolute()


class RunFolder:
    """Paths and records below `<storage_path>/<run_name>/`. Creating one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.ledger = path / "ledger"
        self.predictions = path / "predictions"
        self.stop_request = path / "stop-request"
        self.restart_request = path / "restart-request"
        self._metrics = path / "metrics.jsonl"

    def create(self) -> None:
        """Make the folder, and show that it can be written.

        Raises:
            UserError: when it cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{uuid.uuid4().hex}"
            probe.write_text("x")
            probe.unlink()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def read(self) -> dict[str, Any]:
        """What run.json says; empty when there is none yet.

        Raises:
            UserError: when it is damaged.
        """
        path = self.path / "run.json"
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f"{path} is damaged; use --fresh to start this run anew, or another --run-name"
            )
        return record

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_json(self.path / "run.json", {**self.read(), **fields})

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add a driver's time, by account, to what run.json has of the attempts before."""
        self.update(seconds=add(self.read().get("seconds", {}), seconds))

    def clear(self) -> None:
        """Delete all that the run left, except the lease that guards it."""
        for path in self.path.iterdir():
            if path.name == Lease.NAME:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def wants_stop(self) -> bool:
        """Whether the workers are to save and stop: for good, or to go on with other workers."""
        return self.stop_request.exists() or self.restart_request.exists()

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, by a single write."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut off by a crash is left out."""
        if not self._metrics.exists():
            return []
        whole, _, _ = self._metrics.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines after `step`: the run goes on from there and writes them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_atomic(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def progress(self) -> dict[str, Any]:
        """Where the run is now; empty before its first step."""
        try:
            progress: dict[str, Any] = json.loads((self.path / "progress.json").read_text())
        except (OSError, ValueError):  # for people only: no reason to end the run
            return {}
        return progress

    def set_progress(self, **fields: Any) -> None:
        """Replace progress.json; for people only, so it is not made durable."""
        scratch = self.path / ".progress.json"
        scratch.write_text(json.dumps(fields))
        scratch.replace(self.path / "progress.json")


class Lease:
    """The right to run under a name, held by one driver at a time, renewed while it lives.

    A lease whose holder is gone is taken over: at once when it was a process of this host that no
    longer exists, after `EXPIRY_SECONDS` without a heartbeat when it was elsewhere.

    Raises:
        UserError: on entry, when another driver holds it, and still does after `patience` seconds.
    """

    NAME = "lease.json"

    def __init__(self, folder: Path, patience: float = 0.0) -> None:
        self._path, self._patience = folder / self.NAME, patience
        self._record = {
            "host": socket.gethostname(),
            "processes": _process_table(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "id": uuid.uuid4().hex,
        }
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
            raise _unwritable(self._path.parent, error) from error
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
        holder = self._holder()
        return UserError(
            f"run '{self._path.parent.name}' is already being run by process {holder.get('pid')} on "
            f"{holder.get('host')}; wait for it, stop it, or choose another --run-name"
        )

    def _remove_if_dead(self) -> None:
        try:
            age = time.time() - self._path.stat().st_mtime
        except FileNotFoundError:
            return
        holder = self._holder()
        here = all(holder.get(key) == self._record[key] for key in ("host", "processes"))
        if here and _start_time(holder["pid"]) == holder["started"]:
            return
        if not here and age < EXPIRY_SECONDS:
            return
        # Of several that find it dead, the rename succeeds for one alone. One that was slow may
        # have taken the new holder's lease instead: it gives that back.
        taken = self._path.with_name(f".{self.NAME}-{self._record['id']}")
        try:
            self._path.rename(taken)
        except FileNotFoundError:
            return
        if json.loads(taken.read_text() or "{}").get("id") != holder.get("id"):
            os.link(taken, self._path)
        taken.unlink()


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"--storage-path: {folder} cannot be written ({error.strerror}); give a folder that can, seen "
        "by every node, or make room"
    )


def _process_table() -> str | None:
    """Names the table that process ids of this host are from: containers have their own, and may
    share the host's name.
    """  # noqa: D205
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not on Linux
        return None


def _start_time(pid: int) -> float | None:
    """When a process of this host was started; None when there is none. Tells reused ids apart."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
