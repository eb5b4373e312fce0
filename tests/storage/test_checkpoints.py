import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import SupersededError, UserError
from trainyard.storage import manifest
from trainyard.storage.bucket_checkpoints import BucketCheckpoints
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.manifest import MANIFEST, fault_of


def writer(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights").write_text(content * 100)
        (folder / "state").write_text(content)

    return write


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.claim()
    for step in (10, 20, 30):
        store.commit(step, writer(f"step {step}"))
    return store


def test_commit_and_find(store: CheckpointStore) -> None:
    assert store.steps() == [10, 20, 30]
    assert store.newest() == (30, store.path(30))
    assert all(fault_of(store.path(step)) is None for step in store.steps())
    store.keep({10, 30})
    assert store.steps() == [10, 30]
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "attempt.json", "step-00000010", "step-00000030",
    ]  # fmt: skip


def optimizer_writer(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        writer(content)(folder)
        (folder / "optimizer.pt").write_text("moments")
        (folder / "optimizer-00001-of-00001.safetensors").write_text("more moments")

    return write


def test_a_finished_run_keeps_no_optimizer_state(store: CheckpointStore) -> None:
    for step in (40, 50):
        store.commit(step, optimizer_writer(f"step {step}"))
    assert store.last_of_finished() is None
    store.drop_optimizer()
    for step in (40, 50):
        assert fault_of(store.path(step)) is None
        assert sorted(path.name for path in store.path(step).iterdir()) == [
            "MANIFEST.json", "state", "weights",
        ]  # fmt: skip
    assert store.last_of_finished() == store.path(50)
    assert store.newest() == (30, store.path(30))  # it has all that it was committed with
    assert store.skipped[0] == "step-00000050 holds no optimizer state; fell back to an older one"
    store.commit(50, optimizer_writer("step 50"))  # trained again: the whole checkpoint replaces it
    assert store.newest() == (50, store.path(50))
    (store.path(50) / "weights").write_text("damaged")
    assert store.last_of_finished() is None


def test_killed_while_it_drops_the_optimizer_state(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(40, optimizer_writer("step 40"))

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            store.drop_optimizer()
    assert fault_of(store.path(40)) is None
    assert store.last_of_finished() == store.path(40)
    store.drop_optimizer()
    assert not list(store.path(40).glob("optimizer*"))


def test_an_optimizer_state_that_cannot_be_deleted_is_only_logged(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.commit(40, optimizer_writer("step 40"))

    def busy(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "unlink", busy)
    store.drop_optimizer()
    assert "step-00000040 could not be deleted: [Errno 16] Device or resource busy" in caplog.text


def test_a_file_that_another_process_wrote_and_lost_is_a_fault(store: CheckpointStore) -> None:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "part").write_text("part")
        entry = manifest.entry_of(folder / "part")
        return {"part": entry, "lost": entry}

    store.commit(40, write)
    assert fault_of(store.path(40)) == "lost is missing"
    assert store.newest() == (30, store.path(30))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights", "state", MANIFEST])
@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink], ids=["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_passed_over_and_reported(
    store: CheckpointStore, name: str, damage: Callable[[Path], None]
) -> None:
    damage(store.path(30) / name)
    assert store.newest() == (20, store.path(20))
    assert "step-00000030 is damaged" in store.skipped[0]


def test_a_manifest_with_any_bit_flipped_raises_nothing(store: CheckpointStore) -> None:
    manifest = store.path(30) / MANIFEST
    whole = manifest.read_bytes()
    found = set()
    for place in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        manifest.write_bytes(bytes(flipped))
        found.add((fault_of(store.path(30)) or "").partition(":")[2])
    assert {" KeyError", " JSONDecodeError", " UnicodeDecodeError"} <= found
    for content in ("[]", "3", '{"files": []}', '{"files": {"state": 1}}', '{"files": null}'):
        manifest.write_text(content)
        assert "no valid MANIFEST" in (fault_of(store.path(30)) or "")


def test_a_checkpoint_that_the_disk_cannot_read_is_passed_over(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> str:
        if path.parent == store.path(30):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return hash_of(path)

    hash_of = manifest.file_digest
    monkeypatch.setattr(manifest, "file_digest", broken)
    assert store.newest() == (20, store.path(20))
    assert "cannot be read: Input/output error" in store.skipped[0]


def test_an_old_checkpoint_that_cannot_be_deleted_stops_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS keeps a file that somebody still reads; the next attempt clears it away."""
    for at in range(1, 5):
        store.commit(10, writer("old"))
        with monkeypatch.context() as patch:
            FailingDisk(patch, errno.EBUSY, at, stays=False)
            store.keep({20, 30})
        assert store.newest() == (30, store.path(30))
    assert "could not be deleted" in caplog.text
    store.claim()
    store.keep({20, 30})
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "attempt.json", "step-00000020", "step-00000030",
    ]  # fmt: skip


def test_a_superseded_attempt_deletes_no_checkpoint(store: CheckpointStore) -> None:
    CheckpointStore(store.folder).claim()
    with pytest.raises(SupersededError):
        store.keep({30})
    assert store.steps() == [10, 20, 30]


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(manifest, "file_digest", refuse)
    with pytest.raises(UserError, match=r"step-00000030.* cannot be read: Permission denied; let"):
        store.newest()


def test_an_error_without_a_number_is_told_in_its_own_words(store: CheckpointStore) -> None:
    """NumPy raises one when a disk is full; here it is not."""

    def short(_: Path) -> None:
        raise OSError("6000000 requested and 8 written")

    with pytest.raises(UserError, match=r"checkpoints: 6000000 requested and 8 written; make room"):
        store.commit(40, short)


def test_nothing_valid_left(store: CheckpointStore) -> None:
    for step in store.steps():
        (store.path(step) / "weights").unlink()
    assert store.newest() is None
    assert len(store.skipped) == 3


def test_a_superseded_attempt_cannot_commit(store: CheckpointStore) -> None:
    successor = CheckpointStore(store.folder)
    successor.claim()
    with pytest.raises(SupersededError, match="was superseded by"):
        store.commit(40, writer("zombie"))
    successor.commit(40, writer("successor"))
    assert (store.path(40) / "state").read_text() == "successor"


def test_an_attempt_whose_folder_was_deleted_is_superseded(store: CheckpointStore) -> None:
    """A successor on the same node empties the scratch folder of a run in a bucket."""
    shutil.rmtree(store.folder)
    with pytest.raises(SupersededError, match=r"superseded, because .*checkpoints was deleted; it"):
        store.check_attempt()
    with pytest.raises(SupersededError, match="was deleted"):
        store.commit(40, writer("zombie"))
    assert not store.folder.exists()


def test_a_checkpoint_that_the_index_does_not_list_is_one_sentence(tmp_path: Path) -> None:
    """A successor has pruned it since rank 0 chose it."""

    class EmptyBucket:
        url = "s3://runs"

        def read(self, _: str) -> None:
            return None

    bucket: Any = EmptyBucket()
    store = BucketCheckpoints(tmp_path, bucket, "run/checkpoints")
    with pytest.raises(
        UserError,
        match=r"s3://runs/run/checkpoints/step-00000005 is damaged \(the index of checkpoints does "
        r"not list it\); start the same command again",
    ):
        store.bring(5)


def test_what_a_dead_attempt_left_half_written_is_cleared(store: CheckpointStore) -> None:
    (store.folder / ".inprogress-00000040-dead").mkdir()
    CheckpointStore(store.folder).claim()
    assert not list(store.folder.glob(".inprogress*"))


def test_disk_full_is_one_sentence_and_harms_nothing(
    store: CheckpointStore,
) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"checkpoint of step 40 .* No space left on device; make"):
        store.commit(40, full)
    assert store.newest() == (30, store.path(30))
    assert not list(store.folder.glob(".inprogress*"))


def test_a_library_that_hides_the_full_disk_does_not_hide_it_from_people(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch.save raises says nothing of the disk; without a full one it is raised as it is."""

    def save(_: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        store.commit(40, save)
    assert not list(store.folder.glob(".inprogress*"))
    with monkeypatch.context() as patch:
        FailingDisk(patch, errno.ENOSPC, 2, stays=True)  # it takes the folder and no more
        with pytest.raises(UserError, match=r"step 40 .* No space left on device; make room"):
            store.commit(40, save)
    assert store.newest() == (30, store.path(30))


class FailingDisk:
    """From the n-th file system call that `checkpoints` and `files` make, one or all fail."""

    CALLS = ((os, "fsync"), (os, "open"), (Path, "open"), (Path, "mkdir"), (Path, "rename"),
             (Path, "replace"), (Path, "write_text"), (os, "unlink"), (os, "rmdir"))  # fmt: skip

    def __init__(self, patch: pytest.MonkeyPatch, number: int, at: int, *, stays: bool) -> None:
        self.calls = 0

        def failing(call: Callable[..., Any]) -> Callable[..., Any]:
            def attempt(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                if self.calls == at or (stays and self.calls > at):
                    raise OSError(number, os.strerror(number))
                return call(*args, **kwargs)

            return attempt

        for place, name in self.CALLS:
            patch.setattr(place, name, failing(getattr(place, name)))


@pytest.mark.parametrize(
    ("number", "stays"), [(errno.ENOSPC, True), (errno.EIO, False), (errno.EROFS, True)]
)
def test_a_disk_that_fails_at_any_call_harms_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, stays: bool
) -> None:
    """ENOSPC, EIO or EROFS at the n-th call, for all n: a sentence or a whole checkpoint."""
    refused = 0
    for at in range(1, 100):
        store = CheckpointStore(tmp_path / str(at))
        store.claim()
        store.commit(10, writer("old"))
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, number, at, stays=stays)
            said = None
            try:
                store.commit(20, writer("new"))
            except UserError as error:
                said = str(error)
        if said is not None:
            assert f"could not be written to {store.folder}: {os.strerror(number)};" in said
        found = CheckpointStore(store.folder).newest()
        assert found is not None
        assert found[0] == 20 if said is None else found[0] in {10, 20}
        assert not store.skipped
        refused += said is not None
        store = CheckpointStore(store.folder)  # the disk is well again, the same command is run
        store.claim()
        store.commit(20, writer("new"))
        assert store.newest() == (20, store.path(20))
        assert not list(store.folder.glob(".inprogress*"))
        if disk.calls < at:
            break
    assert disk.calls < at, "not every call was tried"
    assert refused > 5


def test_after_many_faults_the_folder_holds_the_kept_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.claim()
    store.commit(10, writer("first"))
    for fault in range(20):
        attempt = CheckpointStore(tmp_path)
        attempt.claim()
        with monkeypatch.context() as patch:
            FailingDisk(patch, errno.EIO, 2 + fault, stays=True)
            with contextlib.suppress(UserError):
                attempt.commit(20 + fault, writer("lost"))
    last = CheckpointStore(tmp_path)
    last.claim()
    last.commit(50, writer("last"))
    last.keep({10, 50})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attempt.json", "step-00000010", "step-00000050",
    ]  # fmt: skip


def test_an_attempt_judges_no_checkpoint_after_its_own(tmp_path: Path) -> None:
    """They are damaged, and the run resumed before them; or they are a successor's."""
    store = CheckpointStore(tmp_path)
    store.claim()
    for step in (10, 20, 30, 60):
        store.commit(step, writer(f"step {step}"))
    store.keep({10, 30}, until=30)
    assert store.steps() == [10, 30, 60]


CRASHING_COMMIT = """
import os, sys
from pathlib import Path
calls, stop_at = 0, int(sys.argv[2])

def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return call

from trainyard.storage import checkpoints
for name in ("fsync", "replace", "rename", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
Path.mkdir, Path.write_text = counted(Path.mkdir), counted(Path.write_text)

store = checkpoints.CheckpointStore(Path(sys.argv[1]))
store.claim()
def write(folder):
    (folder / "weights").write_text("new" * 1000)
    (folder / "state").write_text("new")
store.commit(20, write)
print("acknowledged", flush=True)
store.keep({20})
print("done", flush=True)
"""


def test_killed_at_any_file_system_call_the_commit_is_never_torn(tmp_path: Path) -> None:
    """SIGKILL at the n-th call, for all n: the old checkpoint or the new; acknowledged is durable."""
    finished = False
    outcomes = set()
    for stop_at in range(1, 60):
        folder = tmp_path / str(stop_at)
        store = CheckpointStore(folder)
        store.claim()
        store.commit(10, writer("old"))
        process = subprocess.run(
            [sys.executable, "-c", CRASHING_COMMIT, str(folder), str(stop_at)],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        found = CheckpointStore(folder).newest()
        assert found is not None
        outcomes.add(found[0])
        if "acknowledged" in process.stdout:
            assert found[0] == 20
        if process.returncode == 0:
            finished = True
            assert json.loads((found[1] / MANIFEST).read_text())["step"] == 20
            break
        assert process.returncode == -9, process.stderr
    assert finished
    assert outcomes == {10, 20}
