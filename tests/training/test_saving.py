"""A checkpoint is written while training continues, and holds the step that it was begun at."""

import dataclasses
import errno
import json
import os
import pickle
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from support.bucket_here import endpoint, url
from support.runs_locally import run_locally, weights_hash

from trainyard.cluster import GROUP_SECONDS
from trainyard.config import TrainConfig
from trainyard.errors import Diverged, SupersededError, UserError
from trainyard.storage import Bucket, RunFolder, open_run
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.training.worker import state as state_module
from trainyard.training.worker.gradients import Gradients
from trainyard.training.worker.saving import CheckpointWriter, HostMemory
from trainyard.training.worker.session import Session
from trainyard.training.worker.state import broadcast_result, sendable
from trainyard.training.worker.weights import write_part, write_weights

__all__ = ["endpoint", "url"]

LAST_STEP = 12


@pytest.fixture
def base(small_run: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Checkpoints at steps 3, 6, 9 and 12, evaluations at 6 and 12."""
    return dataclasses.replace(
        small_run, storage_path=str(tmp_path / "runs"), max_steps=LAST_STEP, save_steps=3, eval_steps=6,
        ledger=False,
    )  # fmt: skip


class SlowWriter:
    """Makes each checkpoint's thread wait until training has done `steps` more, or waits for it."""

    def __init__(self, patch: pytest.MonkeyPatch, steps: int) -> None:
        self.written_at: dict[int, int] = {}
        """Step of a checkpoint -> steps that were done when its files were written."""
        self._done, self._wanted = 0, threading.Event()
        self._changed = threading.Condition()
        finish, begin = Session.finish_step, CheckpointWriter.begin
        take, write = CheckpointWriter._take, CheckpointWriter._write_files

        def finish_step(session: Session, done: int, *rest: Any) -> bool:
            with self._changed:
                self._done = done - 1  # a step counts when the next one is done
                self._changed.notify_all()
            return finish(session, done, *rest)

        def begin_anew(writer: CheckpointWriter, *parts: Any) -> None:
            self._wanted.clear()
            begin(writer, *parts)

        def take_at_once(writer: CheckpointWriter) -> Any:
            with self._changed:
                self._wanted.set()
                self._changed.notify_all()
            return take(writer)

        def write_files(writer: CheckpointWriter, folder: Path, snapshot: Any) -> list[Path]:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._done >= snapshot.step + steps or self._wanted.is_set(), 60
                )
                self.written_at[snapshot.step] = self._done
            return write(writer, folder, snapshot)

        patch.setattr(Session, "finish_step", finish_step)
        patch.setattr(CheckpointWriter, "begin", begin_anew)
        patch.setattr(CheckpointWriter, "_take", take_at_once)
        patch.setattr(CheckpointWriter, "_write_files", write_files)


def at_once(patch: pytest.MonkeyPatch) -> None:
    """Make training wait for each checkpoint."""
    begin = CheckpointWriter.begin

    def begin_and_wait(writer: CheckpointWriter, *parts: Any) -> None:
        begin(writer, *parts)
        if writer._writing is not None:
            writer._writing.result()

    patch.setattr(CheckpointWriter, "begin", begin_and_wait)


def contents(folder: RunFolder) -> dict[str, Any]:
    """Weights, moments and state of every checkpoint."""
    found: dict[str, Any] = {}
    for step in folder.store().steps():
        path = folder.store().path(step)
        state = json.loads((path / "state.json").read_text())
        found[path.name] = weights_hash(folder, step), state
    return found


@pytest.mark.parametrize("loop", ["accelerate", "trainer"])
def test_a_checkpoint_holds_its_step_though_it_is_written_two_steps_later(
    base: TrainConfig, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointStore, "keep", lambda *_, **__: None)
    runs = {}
    for way, prepare in (("later", lambda patch: SlowWriter(patch, 1)), ("at-once", at_once)):
        with monkeypatch.context() as patch:
            slow = prepare(patch)
            config = dataclasses.replace(base, run_name=way, loop=loop)
            outcome, runs[way] = run_locally(config)
            assert outcome.status == "finished"
            if slow is not None:
                assert all(slow.written_at[step] > step for step in (3, 6, 9))
    assert contents(runs["later"]) == contents(runs["at-once"])
    assert runs["later"].metrics() == runs["at-once"].metrics()
    assert len(contents(runs["later"])) == 4


def test_copies_are_complete_separate_and_use_the_same_memory() -> None:
    memory = HostMemory()
    tensors = [torch.arange(6.0).view(2, 3).t(), torch.tensor(7.0), torch.ones(3).half()]
    first = [memory.copy(tensor) for tensor in tensors]
    memory.wait()
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(first, tensors, strict=True))
    assert all(copy.is_contiguous() for copy in first)
    tensors[0].add_(1)
    assert not torch.equal(first[0], tensors[0])
    memory.rewind()
    again = [memory.copy(tensor) for tensor in tensors]
    assert [copy.data_ptr() for copy in again] == [copy.data_ptr() for copy in first]
    assert torch.equal(again[0], tensors[0])


def test_the_disk_is_full_in_the_writer_and_the_run_says_so_at_the_next_step(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training reads of it together with the losses, before the next checkpoint."""
    failed = threading.Event()
    commit, read = CheckpointStore.commit, Session._read_losses

    def full(store: CheckpointStore, step: int, write: Callable[[Path], Any]) -> Path:
        def write_and_fail(folder: Path) -> None:
            write(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return commit(store, step, write_and_fail if step == 6 else write)

    def read_losses(session: Session) -> bool:
        if session.state.step == 6:
            while not session._writer.has_failed:
                time.sleep(0.001)
            failed.set()
        return read(session)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "commit", full)
        patch.setattr(Session, "_read_losses", read_losses)
        config = dataclasses.replace(base, run_name="full")
        outcome, folder = run_locally(config)
    assert failed.is_set()
    assert (outcome.status, outcome.state.step) == ("failed", 7)
    assert str(outcome.error) == (
        f"checkpoint of step 6 could not be written to {folder.checkpoints}: No space left on device; "
        "make room or make it writable, then run the same command to resume from the last checkpoint"
    )
    assert folder.store().steps() == [3]
    assert not list(folder.checkpoints.glob(".inprogress*"))
    outcome, folder = run_locally(config)
    _, whole = run_locally(dataclasses.replace(base, run_name="whole"))
    assert contents(folder) == contents(whole)
    assert folder.metrics() == whole.metrics()


def test_the_last_checkpoint_of_a_run_fails_and_so_does_the_run(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: CheckpointStore, step: int, __: Any) -> Path:
        raise UserError(f"no room for step {step}")

    monkeypatch.setattr(CheckpointStore, "commit", full)
    outcome, folder = run_locally(
        dataclasses.replace(base, save_steps=None, eval_steps=None, max_steps=4)
    )
    assert (outcome.status, str(outcome.error)) == ("failed", "no room for step 4")
    assert not folder.store().steps()


FULL_DISK = SafetensorError(
    "Error while serializing: I/O error: No space left on device (os error 28)"
)
"""Raised by safetensors 0.8.0 on a full disk, where a small file still fits afterwards."""


def too_large(folder: Path) -> Exception:
    """Return what safetensors raises for a file above the limit of this process."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(SafetensorError, match="File too large") as raised:
            save_file({"weight": torch.zeros(10_000)}, folder / "part")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    return raised.value


@pytest.mark.parametrize(
    ("error", "number"), [(lambda _: FULL_DISK, errno.ENOSPC), (too_large, errno.EFBIG)]
)
def test_an_error_of_the_disk_is_recognized(
    error: Callable[[Path], Exception], number: int, tmp_path: Path
) -> None:
    """safetensors raises no OSError."""
    raised = error(tmp_path)

    def fail(_: Path) -> list[Path]:
        raise raised

    store = CheckpointStore(tmp_path)
    store.claim()
    with pytest.raises(OSError, match=os.strerror(number)) as found:
        store.write_part(3, str(store.attempt), fail)
    assert found.value.errno == number
    with pytest.raises(UserError, match=f"step 3 could not be written to .*{os.strerror(number)}"):
        store.commit(3, fail)  # type: ignore[arg-type]


def test_others_may_read_weights_as_they_may_read_their_folder(tmp_path: Path) -> None:
    """safetensors creates files that only their owner can read."""
    tmp_path.chmod(0o750)
    write_weights(tmp_path, {"w": torch.zeros(2)})
    (part, moments) = write_part(tmp_path, {"w": torch.zeros(2)}, {}, 0, 2)
    for file in (tmp_path / "model.safetensors", part, moments):
        assert oct(file.stat().st_mode & 0o777) == oct(0o640)


def test_an_error_of_another_worker_can_be_sent_to_rank_0() -> None:
    class LocalError(Exception):
        """An exception that pickle cannot send."""

    with pytest.raises((AttributeError, pickle.PicklingError), match="LocalError"):
        pickle.dumps(LocalError("odd"))
    assert str(pickle.loads(pickle.dumps(sendable(LocalError("odd"))))) == "LocalError: odd"
    disk = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert sendable(disk) is disk


def test_a_run_that_was_superseded_while_it_wrote_ends_so(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer sees it before it renames, and training when it waits for it, at the next one."""
    publish = CheckpointStore._publish_local

    def superseded(store: CheckpointStore) -> None:
        publish(store)
        if len(store.steps()) == 1:
            CheckpointStore(store.folder).claim()

    monkeypatch.setattr(CheckpointStore, "_publish_local", superseded)
    with pytest.raises(SupersededError):
        run_locally(base)
    folder = open_run(base.storage_path, base.resolved_run_name)
    assert folder.store().steps() == [3]
    assert max(line["step"] for line in folder.metrics()) <= 9
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


def test_an_error_of_training_waits_for_the_checkpoint(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an unexpected one: nothing is written after the attempt has ended."""
    SlowWriter(monkeypatch, 100)

    def broken(session: Session, *_: Any) -> None:
        if session.state.step == 4:
            raise ValueError("a defect")

    monkeypatch.setattr(Session, "_tell", lambda session, **_: broken(session))
    with pytest.raises(ValueError, match="a defect"):
        run_locally(base)
    assert open_run(base.storage_path, base.resolved_run_name).store().steps() == [3]


def test_a_loss_that_is_no_number_keeps_the_checkpoint_that_is_being_written(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowWriter(monkeypatch, 100)
    finish = Session.finish_step

    def not_a_number(session: Session, done: int, loss: Any, rows: int) -> bool:
        return finish(session, done, loss * float("nan") if done == 5 else loss, rows)

    monkeypatch.setattr(Session, "finish_step", not_a_number)
    outcome, folder = run_locally(base)
    assert isinstance(outcome.error, Diverged)
    assert folder.store().steps() == [3]


def test_weights_that_are_no_numbers_are_not_saved(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of step 6 is finite, and not all of its gradients; the run is asked to stop there."""
    step, steps = Gradients.step, 0

    def step_with_nan(gradients: Gradients, *rest: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 6:
            next(gradients._model.parameters()).grad[0, 0] = float("nan")
        return step(gradients, *rest)

    monkeypatch.setattr(Gradients, "step", step_with_nan)
    monkeypatch.setattr(RunFolder, "wants_stop", lambda _: steps == 6)
    config = dataclasses.replace(base, eval_steps=12, max_grad_norm=0.0)
    outcome, folder = run_locally(config)
    assert isinstance(outcome.error, Diverged)
    assert "NaN or infinity; lower --learning-rate" in str(outcome.error)
    assert "after step 6 the weight bert.embeddings.word_embeddings.weight" in str(outcome.error)
    assert folder.store().steps() == [3]


def test_others_hear_from_rank_0_while_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes longer than the process group waits does not end the attempt."""
    sent: list[Any] = []

    def broadcast(_: Any, value: Any) -> Any:
        sent.append(value)
        return value

    monkeypatch.setattr(state_module, "broadcast", broadcast)
    monkeypatch.setattr(state_module, "WAIT_SECONDS", 0.05)

    def write() -> str:
        time.sleep(0.3)
        return "written"

    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(write)
        assert broadcast_result(None, work) == "written"
    assert len(sent) > 4
    assert sent[:-2] == [True] * (len(sent) - 2)
    assert sent[-2:] == [False, ("written", None)]
    assert broadcast_result(None, None) is None


def test_threads_wait_for_slow_parts_longer_than_training_does(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("torch.distributed.new_group", lambda **group: made.append(group))
    pair = SimpleNamespace(is_main_process=True, num_processes=2)
    store = CheckpointStore(Path(base.storage_path))
    CheckpointWriter(dataclasses.replace(base, strategy="fsdp"), pair, store)
    assert made == [{"backend": "gloo", "timeout": timedelta(seconds=3 * GROUP_SECONDS)}]


def test_a_scheduler_decides_when_the_checkpoint_is_committed(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A population copies it."""
    SlowWriter(monkeypatch, 100)
    seen = []
    folder = open_run(base.storage_path, base.resolved_run_name)

    def verdict() -> bool:
        seen.append(folder.store().steps()[-1])
        return True

    outcome, _ = run_locally(base, verdict)
    assert outcome.status == "finished"
    assert seen == [6]


def test_asked_to_stop_it_ends_when_its_checkpoint_is_committed(
    base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowWriter(monkeypatch, 100)
    monkeypatch.setattr(RunFolder, "wants_stop", lambda self: self.progress().get("step", 0) >= 3)
    monkeypatch.setattr("trainyard.training.worker.journal.PROGRESS_SECONDS", 0.0)
    outcome, folder = run_locally(base)
    assert outcome.status == "stopped"
    assert folder.store().steps()[-1] == outcome.state.step


def test_one_file_of_weights_is_as_transformers_writes_it(
    base: TrainConfig, tmp_path: Path
) -> None:
    import transformers

    _, folder = run_locally(base)
    checkpoint = folder.store().path(LAST_STEP)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "theirs")
    for name in ("model.safetensors", "config.json"):
        assert (checkpoint / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_in_a_bucket_later_lines_are_cut_when_another_machine_resumes(
    url: str, base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of later steps are uploaded with the records of a checkpoint."""
    _, whole = run_locally(dataclasses.replace(base, run_name="whole"))
    config = dataclasses.replace(base, storage_path=url, run_name="killed")

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        SlowWriter(patch, 1)
        finish = Session.finish_step

        def killed(session: Session, done: int, *rest: Any) -> bool:
            going_on = finish(session, done, *rest)
            if done == 8:
                raise Killed
            return going_on

        patch.setattr(Session, "finish_step", killed)
        with pytest.raises(Killed):
            run_locally(config)
    stored = Bucket(url).read("killed/metrics.jsonl")
    assert stored is not None
    steps = [json.loads(line)["step"] for line in stored.content.splitlines()]
    assert steps[-1] > 6
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "another"))
    first: list[int] = []
    resume = Session.resume

    def resumed(session: Session, *live: Any) -> None:
        resume(session, *live)
        first.append(session.state.step)

    monkeypatch.setattr(Session, "resume", resumed)
    outcome, folder = run_locally(config)
    assert (first, outcome.status) == ([6], "finished")
    assert folder.metrics() == whole.metrics()
    assert weights_hash(folder, LAST_STEP) == weights_hash(whole, LAST_STEP)
