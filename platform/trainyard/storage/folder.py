"""Folders of runs, sweeps and suites, and the records in them.

A run, at <storage_path>/<run name>/:

    run.json       config, versions, data fingerprint, status, result
    metrics.jsonl  one line per logged step and per evaluation
    usage.jsonl    CPU, memory and GPU of the first worker's node, one line every few seconds
    log.txt        messages of the driver
    progress.json  the current step
    model/         the best checkpoint, for plain transformers
    predictions/   SPLIT.npy: logits of the best checkpoint, float32 [rows, labels], in row order
    checkpoints/ tensorboard/ ledger/

A sweep (trials and confirmation runs are run folders with a trial.json, see `sweep_folder`):

    sweep.json  trials/<trial name>/  confirmation/<name>/
    best.yaml               for `trainyard train --config`
    model/                  the best trial's model, for plain transformers
    trials.csv trials.json  one row per trial
    tensorboard/            hyperparameters and scores (HParams)

A suite holds one run folder per (task, seed), and its table: glue.json glue.md glue.html.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from trainyard.errors import DamagedRun, UserError
from trainyard.storage.atomic import (
    as_json,
    discard,
    scratch_path,
    scratch_pattern,
    sync_file,
    write_array,
    write_atomic,
    write_json,
)
from trainyard.storage.checkpoints import BucketCheckpoints, CheckpointStore
from trainyard.storage.lease import LEASE, Fence, Lease
from trainyard.storage.mirror import (
    ASK_SECONDS,
    DRIVER,
    TELL_SECONDS,
    Mirror,
    outages_logged,
)
from trainyard.storage.records import parse_line, parse_record, read_record
from trainyard.storage.stopwatch import add
from trainyard.storage.store import Bucket, Conflict, Disk, Store, lock_name, unwritable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GUARDS = {LEASE, lock_name(LEASE), DRIVER}
_REQUEST_NAMES = ("stop-request", "restart-request")
_REQUESTS = [f"{name}*" for name in _REQUEST_NAMES]
_LOG = "log.txt"


def storage_folder(path: str) -> Path:
    """Return `--storage-path` as an absolute path: workers have another working directory.

    Raises:
        UserError: `path` is a URL.
    """
    if "://" in path:
        raise UserError(
            f"--storage-path {path} is a URL, with which only `trainyard train` can work; mount the bucket "
            "and give the folder"
        )
    return Path(path).expanduser().absolute()


def open_run(storage_path: str, name: str, fence: Fence | None = None) -> "RunFolder":
    """Return the folder of run `name` in `--storage-path`, a folder or the URL of a bucket.

    Raises:
        UserError: The scheme of the URL is not supported.
    """
    if "://" in storage_path:
        mirror = Mirror(storage_path, name)
        return RunFolder(mirror.path, mirror=mirror, fence=fence)
    return RunFolder(storage_folder(storage_path) / name, fence=fence)


class JobFolder:
    """Paths and record of a job in `<storage_path>/<name>/`. The constructor accesses no storage.

    Args:
        path: Folder of the job; with a `mirror`, its scratch copy on this node.
        mirror: Copy of the folder in a bucket.
        fence: Fence of the sweep or suite that the job belongs to; inside `lease`, the job's own.
            Checked before shared records are written, except requests and usage.jsonl.
    """

    RECORD = "run.json"
    KIND = "run"

    def __init__(
        self, path: Path, *, mirror: Mirror | None = None, fence: Fence | None = None
    ) -> None:
        self.path, self.mirror, self.fence = path, mirror, fence
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"

    @property
    def stop_request(self) -> Path:
        """Path of the file that asks the holder of `fence`, and runs below it, to save and stop."""
        return self.path / _request("stop", self.fence)

    def stop_is_requested(self) -> bool:
        """Return whether a stop request lies here, to `fence`, a fence above it, or any holder."""
        return any((self.path / _request("stop", one)).exists() for one in _and_above(self.fence))

    def create(self) -> None:
        """Create the folder, and check that it and the bucket can be written.

        Raises:
            UserError: The folder or the bucket cannot be written, or `check` fails.
        """
        self.check()
        try:
            if self.mirror is not None:
                Bucket(self.mirror.bucket.url, impatient=True).clock()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        Disk(self.path).clock()

    @contextmanager
    def created(self) -> Iterator[None]:
        """Create the folder; after a UserError in the block, remove empty folders made here.

        A folder that holds only the driver's log counts as empty, unless the job is in a bucket.

        Raises:
            UserError: The folder or the bucket cannot be written, or `check` fails.
        """
        folders = (self.path, self.path.parent / ".cache", *self.path.parents)
        missing = [folder for folder in folders if not folder.exists()]
        self.create()
        try:
            yield
        except UserError:
            if self.path in missing and self.mirror is None and not self.names():
                (self.path / _LOG).unlink(missing_ok=True)
            for folder in missing:  # the innermost first
                with suppress(OSError):
                    folder.rmdir()
            raise

    def address(self, name: str = "") -> str:
        """Return the path or URL of a file or folder of the job; by default, of the job."""
        if self.mirror is not None:
            return f"{self.mirror.bucket.url}/{self.mirror.key(name)}".rstrip("/")
        return str(self.path / name)

    @contextmanager
    def lease(self, patience: float = 0.0) -> Iterator[Lease]:
        """Create the folder, hold its `Lease`, and delete old requests and scratch files.

        Raises:
            HeldError: Another driver still holds the lease after `patience` seconds.
            UserError: The folder or the bucket cannot be written, or `check` fails.
        """
        with (
            self.created(),
            Lease(*self._stored(LEASE), f"{self.KIND} '{self.path.name}'", patience) as lease,
        ):
            above, self.fence = self.fence, lease.fence(self.fence)
            try:
                for pattern in (scratch_pattern(), *_REQUESTS):
                    for left in self.path.glob(pattern):
                        discard(left)
                yield lease
            finally:
                self.fence = above

    def check(self) -> None:
        """Check that this driver, if it has a fence, still holds the lease of the job.

        Raises:
            SupersededError: Another driver has taken over the job.
            UserError: The storage does not answer.
        """
        if self.fence is not None:
            self.fence.check()

    def read(self) -> dict[str, Any]:
        """Return the job's record; empty before it is first written.

        Raises:
            DamagedRun: The record holds no JSON object.
        """
        return self.read_json(self.RECORD)

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return read_record(self.path / name)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise self.damaged(name) from error

    def damaged(self, name: str) -> DamagedRun:
        return DamagedRun(
            f"{self.path / name} is damaged",
            remedy=f"use --fresh to start this {self.KIND} anew, or another --run-name",
        )

    def update(self, **fields: Any) -> None:
        """Set fields of the record with a conditional write; repeat it if another process writes.

        Raises:
            DamagedRun: The record holds no JSON object.
            SupersededError: Another driver has taken over the job.
            UserError: The storage cannot be read or written.
        """
        store, name = self._stored(self.RECORD)
        while True:
            stored = store.read(name)
            try:
                before = {} if stored is None else parse_record(stored.content)
            except ValueError as error:
                raise self.damaged(self.RECORD) from error
            record = {**before, **fields}
            self.check()
            try:
                store.write(
                    name, as_json(record).encode(), over=stored.version if stored else "nothing"
                )
                break
            except Conflict:
                continue
        if self.mirror is not None:
            write_json(self.path / self.RECORD, record)

    def _stored(self, name: str) -> tuple[Store, str]:
        """Return the store of a file that several drivers may write, and the file's name in it."""
        if self.mirror is None:
            return Disk(self.path), name
        return self.mirror.bucket, self.mirror.key(name)

    def publish(self, *names: str) -> None:
        """Upload files and folders to the job's bucket, if it has one; skip unchanged files.

        Raises:
            SupersededError: Another driver has taken over the job.
            UserError: The bucket cannot be written.
        """
        if self.mirror is not None:
            self.check()
            self.mirror.push(*names)

    def names(self) -> list[str]:
        """Return the names in the folder, except files of a starting driver such as the lease."""
        if self.mirror is not None:
            return sorted({name.partition("/")[0] for name in self.mirror.names()})
        return sorted(
            path.name
            for path in self.path.iterdir()
            if path.name not in {LEASE, _LOG}
            and not any(path.match(p) for p in (scratch_pattern(), lock_name("*"), *_REQUESTS))
        )

    def clear(self) -> None:
        """Delete everything in the folder, except its lease.

        Raises:
            SupersededError: Another driver has taken over the job.
            UserError: The folder has content but no record, so it is not the folder of a job. Or
                the storage does not answer.
        """
        self.check()
        if (names := self.names()) and self.RECORD not in names:
            raise UserError(
                f"{self.address()} holds {names[0]} but no {self.RECORD}, so --fresh does not empty it; "
                "choose another --run-name"
            )
        # The record goes last: without it, --fresh refuses to delete the rest.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == self.RECORD):
            if path.name not in _GUARDS:
                whole = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path) if whole else path.unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.delete(self.mirror.names())


class RunFolder(JobFolder):
    """Folder of one training run, possibly mirrored in a bucket."""

    def __init__(
        self, path: Path, *, mirror: Mirror | None = None, fence: Fence | None = None
    ) -> None:
        super().__init__(path, mirror=mirror, fence=fence)
        self.checkpoints = path / "checkpoints"
        self.ledger = path / "ledger"
        self.predictions = path / "predictions"
        self._metrics = path / "metrics.jsonl"
        self._seen_request = False

    @property
    def restart_request(self) -> Path:
        """Path of the file by which the driver asks its workers to save and stop for a restart."""
        return self.path / _request("restart", self.fence)

    @property
    def seen_everywhere(self) -> bool:
        return self.mirror is None

    def store(self) -> CheckpointStore:
        """Return the checkpoint store of this run; its `claim` starts an attempt."""
        if self.mirror is None:
            return CheckpointStore(self.checkpoints, self.fence, self._sync_metrics)
        mirror = self.mirror
        return BucketCheckpoints(
            self.checkpoints,
            mirror.bucket,
            mirror.key("checkpoints"),
            fetch=lambda: mirror.pull("metrics.jsonl", "progress.json", "usage.jsonl"),
            publish=lambda: self.publish(
                "metrics.jsonl", "progress.json", "usage.jsonl", "predictions", "tensorboard"
            ),
            fence=self.fence,
        )

    def has_model(self) -> bool:
        if self.mirror is not None:
            return self.mirror.bucket.has(self.mirror.key("model/model.safetensors"))
        return (self.model / "model.safetensors").exists()

    def on_this_node(self, tables: Mapping[str, Path]) -> tuple[Self, Mapping[str, Path]]:
        """Return this folder, and the tokenized splits by name, with paths on the calling node.

        Raises:
            UserError: The bucket lacks a split, or has a damaged one.
        """
        if self.mirror is None:
            return self, tables
        mirror = self.mirror.on_this_node()
        if self.fence is not None:
            mirror.empty_unless_of(self.fence.id)
        mirror.path.mkdir(parents=True, exist_ok=True)
        run = type(self)(mirror.path, mirror=mirror, fence=self.fence)
        local = {split: mirror.path.parent / ".cache" / path.name for split, path in tables.items()}
        for folder in local.values():
            if not run.find_table(folder):
                raise UserError(
                    f"the tokenized data at {mirror.bucket.url}/.cache/{folder.name} is gone or damaged; "
                    "delete what is left of it and start the same command again"
                )
        return run, local

    def fetch(self) -> None:
        """Replace this node's scratch folder with the bucket's records, and delete requests.

        The requests are those to an earlier driver. Only the holder of the lease may call this.
        Without a bucket, it does nothing.

        Raises:
            UserError: The bucket does not answer.
        """
        if self.mirror is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            if self.fence is not None:
                self.mirror.mark_as_of(self.fence.id)
            self.mirror.pull("run.json", "metrics.jsonl", "progress.json", "usage.jsonl", _LOG)
            self.mirror.delete(
                name for name in self.mirror.names() if name.startswith(_REQUEST_NAMES)
            )

    def share_tables(self, tables: Mapping[str, Path]) -> None:
        """Upload the tokenized splits to the run's bucket, if it has one, for other nodes.

        Raises:
            UserError: The bucket cannot be written.
        """
        if self.mirror is not None:
            self.mirror.push_tables(tables)

    def find_table(self, folder: Path) -> bool:
        """Return whether a tokenized split is in `folder`; if not, try to download it first.

        Raises:
            UserError: The bucket cannot be read.
        """
        return folder.exists() or (self.mirror is not None and self.mirror.pull_table(folder))

    def request(self, path: Path, reason: str | None) -> None:
        """Write the request file `path` with its reason; a reason of None withdraws the request.

        Raises:
            SupersededError: Another driver has taken over the run, which is in a bucket.
        """
        path.unlink(missing_ok=True) if reason is None else path.write_text(reason)
        if self.mirror is not None:
            with outages_logged():
                if reason is None:
                    self.mirror.delete([path.name])
                else:
                    self.publish(path.name)

    def wants_stop(self) -> bool:
        """Return whether a stop or restart is requested, on this node or in the bucket."""
        if self.stop_is_requested() or self.restart_request.exists():
            return True
        if self.mirror is not None and self.mirror.asks.is_due(ASK_SECONDS):
            with outages_logged():
                keys = [self.mirror.key(p.name) for p in (self.stop_request, self.restart_request)]
                self._seen_request = any(map(self.mirror.brief.has, keys))
        return self._seen_request

    def sync(self) -> None:
        """Upload a stop request and download progress, if the run is in a bucket. Poll it.

        Raises:
            SupersededError: Another driver has taken over the run.
        """
        if self.mirror is None:
            return
        with outages_logged():
            self.publish(self.stop_request.name)  # a signal handler only writes the local file
            if self.mirror.tells.is_due(TELL_SECONDS):
                stored = self.mirror.bucket.read(self.mirror.key("progress.json"))
                progress = (parse_line(stored.content) if stored else None) or {}
                if _step(progress) > _step(self.progress()):
                    self._write_progress(progress)

    def clean_up(self) -> None:
        """Delete what a finished run does not need: its scratch folder, or files of Ray Train."""
        if self.mirror is not None:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            shutil.rmtree(self.path / "ray", ignore_errors=True)  # holds no file of the run

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add a driver's seconds by account to the `seconds` of run.json.

        Raises:
            UserError: `update` fails.
        """
        self.update(seconds=add(self.read().get("seconds", {}), seconds))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl in a single write.

        Lines of a mirrored run stay on this node until `publish` checks the lease.

        Raises:
            UserError: `check` fails.
        """
        if self.mirror is None:
            self.check()
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def append_usage(self, row: Mapping[str, Any]) -> None:
        """Append one line to usage.jsonl, which only the dashboard reads."""
        with (self.path / "usage.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, without an incomplete last line left by a crash.

        Raises:
            DamagedRun: A complete line holds no JSON object with an integer `step`.
        """
        lines = self._metrics_or_damage()
        whole = [line for line in lines if line is not None]
        if len(whole) < len(lines):
            raise self.damaged("metrics.jsonl")
        return whole

    def _metrics_or_damage(self) -> list[dict[str, Any] | None]:
        """Return the complete lines of metrics.jsonl; None for each damaged one."""
        if not self._metrics.exists():
            return []
        complete, _, _ = self._metrics.read_bytes().rpartition(b"\n")
        lines = (parse_line(line) or {} for line in complete.splitlines())
        return [line if isinstance(line.get("step"), int) else None for line in lines]

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after `step`, which a resumed run writes again.

        A power cut may have damaged them: a checkpoint makes only the lines before it durable.

        Raises:
            DamagedRun: A line that is not dropped holds no JSON object with an integer `step`.
            UserError: `check` fails.
        """
        self.check()
        lines = self._metrics_or_damage()
        while lines and (lines[-1] is None or lines[-1]["step"] > step):
            lines.pop()
        if None in lines:
            raise self.damaged("metrics.jsonl")
        kept = [line for line in lines if line is not None and line["step"] <= step]
        write_atomic(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def write_predictions(self, logits: Mapping[str, "NDArray[Any]"]) -> None:
        """Write the logits of each split to predictions/SPLIT.npy.

        Raises:
            UserError: `check` fails.
        """
        self.check()
        for split, values in logits.items():
            write_array(self.predictions / f"{split}.npy", values)

    def read_predictions(self, split: str) -> "NDArray[Any]":
        """Return the best checkpoint's logits of a split, [rows, labels].

        Raises:
            UserError: The file is absent or damaged.
        """
        import numpy as np  # --help does not need it

        path = self.predictions / f"{split}.npy"
        try:
            logits: NDArray[Any] = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path} is damaged; delete {self.path}, and the same command trains that run again"
            ) from error
        return logits

    def progress(self) -> dict[str, Any]:
        """Return the content of progress.json; empty if the file is absent or damaged."""
        try:
            return read_record(self.path / "progress.json")
        except (OSError, ValueError):  # informative only: no reason to end the run
            return {}

    def set_progress(self, **fields: Any) -> None:
        """Replace progress.json; it is informative only, so it is not flushed to disk.

        Raises:
            UserError: `check` fails.
        """
        if self.mirror is None:
            self.check()
        self._write_progress(fields)
        if self.mirror is not None and self.mirror.tells.is_due(TELL_SECONDS):
            with outages_logged():
                self.check()
                self.mirror.push_at_once("progress.json")

    def _write_progress(self, fields: Mapping[str, Any]) -> None:
        scratch = scratch_path(self.path / "progress.json")
        scratch.write_text(json.dumps(fields))
        scratch.replace(self.path / "progress.json")

    def _sync_metrics(self) -> None:
        if self._metrics.exists():
            sync_file(self._metrics)


def _step(progress: Mapping[str, Any]) -> int:
    """Return the step of progress.json; 0 without one."""
    step = progress.get("step")
    return step if isinstance(step, int) else 0


def _request(kind: str, fence: Fence | None) -> str:
    """Return the file name of a request to the holder of `fence`; None means any holder."""
    return f"{kind}-request" if fence is None else f"{kind}-request-{fence.id[:12]}"


def _and_above(fence: Fence | None) -> Iterator[Fence | None]:
    while fence is not None:
        yield fence
        fence = fence.above
    yield None


class SuiteFolder(JobFolder):
    """Folder of a suite; glue.json is its table and its record."""

    RECORD = "glue.json"
    KIND = "suite"

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name, fence=self.fence)

    def write_table(self, table: Mapping[str, Any], markdown: str, page: str) -> None:
        self.check()
        write_json(self.path / self.RECORD, table)
        write_atomic(self.path / "glue.md", markdown)
        write_atomic(self.path / "glue.html", page)
