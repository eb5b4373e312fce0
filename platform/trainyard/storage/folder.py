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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from trainyard.errors import UserError
from trainyard.storage.atomic import (
    scratch_path,
    sync_file,
    write_array,
    write_atomic,
    write_json,
)
from trainyard.storage.bucket_checkpoints import BucketCheckpoints
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.exchange import Exchange
from trainyard.storage.job_folder import (
    LOG,
    REQUEST_NAMES,
    JobFolder,
    request_name,
    storage_folder,
)
from trainyard.storage.lease import Fence
from trainyard.storage.mirror import TELL_SECONDS, Mirror, outages_logged
from trainyard.storage.records import parse_line, read_record
from trainyard.storage.stopwatch import add

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_run(storage_path: str, name: str, fence: Fence | None = None) -> "RunFolder":
    """Return the folder of run `name` in `--storage-path`, a folder or the URL of a bucket.

    Raises:
        UserError: The scheme of the URL is not supported.
    """
    if "://" in storage_path:
        mirror = Mirror(storage_path, name)
        return RunFolder(mirror.path, mirror=mirror, fence=fence)
    return RunFolder(storage_folder(storage_path) / name, fence=fence)


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
        self._exchange: Exchange | None = None

    @property
    def restart_request(self) -> Path:
        """Path of the file by which the driver makes its workers save and stop for a restart."""
        return self.path / request_name("restart", self.fence)

    @property
    def seen_everywhere(self) -> bool:
        """True if every node sees the folder; False for a scratch copy of a bucket."""
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
        """Return whether the run has exported its model.

        Raises:
            UserError: The bucket does not answer.
        """
        if self.mirror is not None:
            return self.mirror.bucket.has(self.mirror.key("model/model.safetensors"))
        return (self.model / "model.safetensors").exists()

    def on_this_node(self, tables: Mapping[str, Path]) -> tuple[Self, Mapping[str, Path]]:
        """Return this folder, and the tokenized splits by name, with paths on the calling node.

        Raises:
            SupersededError: Another driver has taken over the run, which is in a bucket.
            UserError: The bucket lacks a split, has a damaged one, or does not answer.
        """
        if self.mirror is None:
            return self, tables
        mirror = self.mirror.on_this_node()
        if self.fence is not None:
            mirror.empty_unless_of(self.fence)
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
            self.mirror.pull("run.json", "metrics.jsonl", "progress.json", "usage.jsonl", LOG)
            self.mirror.delete(
                name for name in self.mirror.names() if name.startswith(REQUEST_NAMES)
            )

    def share_tables(self, tables: Mapping[str, Path]) -> None:
        """Upload the tokenized splits to the run's bucket, if it has one, for other nodes.

        Raises:
            UserError: The bucket cannot be written.
        """
        if self.mirror is not None:
            self.mirror.push_tables(tables)

    def find_table(self, folder: Path) -> bool:
        """Return whether `folder` holds a tokenized split; first try to download an absent one.

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
        """Return whether a stop or restart is requested, on this node or in the bucket.

        Requests in the bucket are seen between `begin_exchange` and `end_exchange`.
        """
        if self.stop_is_requested() or self.restart_request.exists():
            return True
        return self._exchange is not None and self._exchange.request_seen

    def begin_exchange(self) -> None:
        """Start the thread of an `Exchange` with the run's bucket, if it has one."""
        if self.mirror is not None:
            requests = self.stop_request.name, self.restart_request.name
            self._exchange = Exchange(self.mirror, self.fence, requests)

    def end_exchange(self) -> None:
        """End the thread that `begin_exchange` started, if any."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def poll(self) -> None:
        """Call `check`; after `begin_exchange`, only when its last answer is too old.

        So a short outage of the bucket stops no training step.

        Raises:
            SupersededError: Another driver has taken over the run.
            UserError: The storage does not answer.
        """
        if self._exchange is None:
            self.check()
        else:
            self._exchange.poll()

    def _check_here(self) -> None:
        """Check the lease before a write to the folder; with a bucket, without waiting for it.

        A successor on this node uses the same scratch folder, and would publish what is written.
        """
        if self.mirror is None:
            self.check()
        else:
            self.poll()

    def may_log(self) -> bool:
        """Return whether no other driver is known to have taken over the run; asks no bucket."""
        if self.mirror is not None:
            return self.fence is None or self.mirror.is_of(self.fence.id)
        try:
            self.check()
        except UserError:
            return False
        return True

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

        Raises:
            UserError: `poll` fails; without a bucket, `check`.
        """
        self._check_here()
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
            UserError: `poll` fails; without a bucket, `check`.
        """
        self._check_here()
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

        That of a mirrored run is uploaded by the thread of `begin_exchange`, or by `publish`.

        Raises:
            UserError: `poll` fails; without a bucket, `check`.
        """
        self._check_here()
        self._write_progress(fields)

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


class SuiteFolder(JobFolder):
    """Folder of a suite; glue.json is its table and its record."""

    RECORD = "glue.json"
    KIND = "suite"

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name, fence=self.fence)

    def write_table(self, table: Mapping[str, Any], markdown: str, page: str) -> None:
        """Write the table as glue.json, glue.md and glue.html.

        Raises:
            UserError: `check` fails.
        """
        self.check()
        write_json(self.path / self.RECORD, table)
        write_atomic(self.path / "glue.md", markdown)
        write_atomic(self.path / "glue.html", page)
