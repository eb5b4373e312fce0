"""The folder of a run: what it holds, and what people can read in it.

run.json       config, versions, data fingerprint, status, result
metrics.jsonl  one line per logged step and per evaluation
progress.json  where the run is now
model/         the best checkpoint, for plain transformers
predictions/   SPLIT.npy: logits of the best checkpoint, float32 [rows, labels], in row order
checkpoints/ tensorboard/ ledger/
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.storage.atomic import write_atomic, write_json
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.lease import Lease, unwritable
from trainyard.storage.stopwatch import add


def storage_folder(path: str) -> Path:
    """`--storage-path` as a folder: absolute, for workers have another working directory.

    Raises:
        UserError: for a URL.
    """
    if "://" in path:
        raise UserError(
            f"--storage-path {path} is a URL, with which only jobs/train.py can work; mount the bucket "
            "and give the folder"
        )
    return Path(path).expanduser().absolute()


class RunFolder:
    """Paths and records below `<storage_path>/<run_name>/`. Creating one touches nothing.

    Where the run is kept in a bucket this is a node's scratch folder: see `remote.RemoteRun`, which
    overrides what `here`, `fetch`, `publish`, `relay` and `find_table` do not do here.
    """

    seen_everywhere = True
    """Whether workers on other nodes see the same files."""

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
            raise unwritable(self.path, error) from error

    def address(self, name: str = "") -> str:
        """What people and other programs call a part of the run."""
        return str(self.path / name)

    def lease(self, patience: float = 0.0) -> Any:
        """The right to run under this name; see `Lease`."""
        return Lease(self.path, patience)

    def store(self) -> CheckpointStore:
        """The checkpoints of this run, for one attempt at it."""
        return CheckpointStore(self.checkpoints)

    def has_model(self) -> bool:
        """Whether the run has exported its model."""
        return (self.model / "model.safetensors").exists()

    def here(self, tables: Mapping[str, Path]) -> "tuple[RunFolder, Mapping[str, Path]]":
        """This folder and the tokenized splits, as a worker's node sees them."""
        return self, tables

    def fetch(self) -> None:
        """Bring here what an earlier driver left; call it under the lease."""

    def publish(self, *names: str) -> None:
        """Make these files and folders durable, and seen by others."""

    def share(self, tables: Mapping[str, Path]) -> None:
        """Show the tokenized splits to other nodes."""

    def relay(self) -> None:
        """Pass on between driver and workers what they do not see of each other; call it often."""

    def find_table(self, folder: Path) -> bool:
        """Whether a tokenized split is there."""
        return folder.exists()

    def request(self, path: Path, reason: str | None) -> None:
        """Ask the workers to stop or restart, or, without a reason, ask them no more."""
        path.unlink(missing_ok=True) if reason is None else path.write_text(reason)

    def tidy(self) -> None:
        """Delete what a finished run needs no more."""
        shutil.rmtree(self.path / "ray", ignore_errors=True)  # Ray Train's, empty of ours

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
            raise self._damaged(path)
        return record

    def _damaged(self, path: Path) -> UserError:
        return UserError(
            f"{path} is damaged; use --fresh to start this run anew, or another --run-name"
        )

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_json(self.path / "run.json", {**self.read(), **fields})

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add a driver's time, by account, to what run.json has of the attempts before."""
        self.update(seconds=add(self.read().get("seconds", {}), seconds))

    def names(self) -> list[str]:
        """What lies in the folder, but for what a driver that is starting puts there."""
        own = (Lease.NAME, self.stop_request.name)
        return sorted(path.name for path in self.path.iterdir() if path.name not in own)

    def clear(self, record: str = "run.json") -> None:
        """Delete all that the run left, except the lease that guards it.

        Raises:
            UserError: when there is something, but no `record`: then it is not what a run left.
        """
        if (found := self.names()) and record not in found:
            raise UserError(
                f"{self.address()} holds {found[0]} but no {record}, so --fresh does not empty it; "
                "choose another --run-name"
            )
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
        """The lines of metrics.jsonl; a last line cut off by a crash is left out.

        Raises:
            UserError: when another one is damaged.
        """
        if not self._metrics.exists():
            return []
        whole, _, _ = self._metrics.read_bytes().rpartition(b"\n")
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            lines = [None]
        if not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in lines):
            raise self._damaged(self._metrics)
        return lines

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
