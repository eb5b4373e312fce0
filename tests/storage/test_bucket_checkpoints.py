"""Checkpoints in a bucket, on a real S3 server: two attempts at once, workers of several nodes."""

import contextlib
import errno
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage.test_checkpoints import writer
from support.bucket_here import endpoint, url
from support.s3_server import BUCKET

from trainyard import UserError
from trainyard.errors import SupersededError
from trainyard.storage.bucket_checkpoints import BucketCheckpoints
from trainyard.storage.store import Bucket

__all__ = ["endpoint", "url"]  # fixtures


def checkpoints(url: str, machine: Path) -> BucketCheckpoints:
    """The run's checkpoints as a machine with that disk sees them."""
    return BucketCheckpoints(machine, Bucket(url), "run/checkpoints")


def start(store: BucketCheckpoints) -> str:
    assert store.attempt is not None
    return store.attempt[:8]


@pytest.fixture
def three(url: str, tmp_path: Path) -> BucketCheckpoints:
    store = checkpoints(url, tmp_path / "first")
    store.claim()
    for step in (10, 20, 30):
        store.commit(step, writer(f"step {step}"))
    return store


def test_a_local_copy_that_cannot_be_deleted_stops_nothing(
    three: BucketCheckpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        three.keep({20, 30})
    name = f"step-00000010-{start(three)}"
    assert f"{name} could not be deleted: [Errno 16] Device or resource busy" in caplog.text
    assert three.steps() == [20, 30]
    three.claim()
    assert not list(three.folder.glob(".inprogress-*"))


def test_another_machine_finds_the_newest(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    other = checkpoints(url, tmp_path / "other")
    assert other.steps() == [10, 20, 30]
    assert other.newest() == (30, other.path(30))
    assert (other.path(30) / "state").read_text() == "step 30"
    three.keep({10, 30})
    assert {name.split("/")[2] for name in Bucket(url).names("run")} == {
        "index.json", f"step-00000010-{start(three)}", f"step-00000030-{start(three)}",
    }  # fmt: skip


def test_a_finished_run_keeps_no_optimizer_state_in_its_bucket(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        writer("step 40")(folder)
        (folder / "optimizer.pt").write_text("moments")

    three.commit(40, write)
    three.drop_optimizer()
    assert not [name for name in Bucket(url).names("run") if "optimizer" in name]
    for store in (three, checkpoints(url, tmp_path / "other")):
        last = store.last_of_finished()
        assert last == store.path(40)
        assert sorted(path.name for path in last.iterdir()) == ["MANIFEST.json", "state", "weights"]
        assert store.newest() == (30, store.path(30))
        assert "holds no optimizer state" in store.skipped[0]


@pytest.mark.parametrize("damage", ["manifest gone", "file gone", "file changed", "file cut"])
def test_a_damaged_checkpoint_is_passed_over_and_reported(
    url: str, three: BucketCheckpoints, tmp_path: Path, damage: str
) -> None:
    bucket = Bucket(url)
    name = f"run/checkpoints/step-00000030-{start(three)}"
    if damage == "manifest gone":
        bucket.delete([f"{name}/MANIFEST.json"])
    elif damage == "file gone":
        bucket.delete([f"{name}/weights"])
    else:
        bucket.write(f"{name}/weights", b"step 31" * 100 if damage == "file changed" else b"step 3")
    for machine in (tmp_path / "other", three.folder):  # its own disk still has the whole one
        store = checkpoints(url, machine)
        store.claim()
        if machine == three.folder and damage != "manifest gone":
            assert store.newest() == (30, store.path(30))  # verified against the manifest
            continue
        assert store.newest() == (20, store.path(20))
        assert f"{name.rpartition('/')[2]} is damaged" in store.skipped[0]


def test_a_superseded_attempt_cannot_commit_and_harms_nothing(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    successor = checkpoints(url, tmp_path / "other")
    successor.claim()
    successor.commit(40, writer("successor"))
    for harm in (lambda: three.commit(40, writer("zombie")), lambda: three.keep({30})):
        with pytest.raises(SupersededError, match="was superseded"):
            harm()
    third = checkpoints(url, three.folder)  # where the zombie's step 40 lies
    third.claim()
    assert third.steps() == [10, 20, 30, 40]
    assert third.newest() == (40, third.path(40))
    assert (third.path(40) / "state").read_text() == "successor"


def part_writer(name: str) -> Callable[[Path], list[Path]]:
    """Return a function that writes one worker's part of a checkpoint: the file `name`."""

    def write(folder: Path) -> list[Path]:
        (folder / name).write_text(f"part {name}")
        return [folder / name]

    return write


def commit_parts(store: BucketCheckpoints, step: int, workers: list[BucketCheckpoints]) -> Path:
    """Commit a checkpoint as rank 0, of which each of `workers` writes one part."""

    def write(folder: Path) -> dict[str, Any]:
        writer(f"step {step}")(folder)
        return {
            name: entry
            for rank, worker in enumerate(workers)
            for name, entry in worker.write_part(
                step, str(store.attempt), part_writer(f"part-{rank}")
            ).items()
        }

    return store.commit(step, write)


def test_the_workers_of_two_nodes_upload_their_parts(
    url: str, three: BucketCheckpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = []
    upload = Bucket.upload

    def counted(bucket: Bucket, name: str, file: Path) -> None:
        uploads.append(name.rpartition("/")[2])
        upload(bucket, name, file)

    monkeypatch.setattr(Bucket, "upload", counted)
    beside, away = checkpoints(url, three.folder), checkpoints(url, tmp_path / "away")
    path = commit_parts(three, 40, [three, beside, away, checkpoints(url, away.folder)])
    assert uploads == ["part-0", "part-1", "part-2", "part-3", "state", "weights", "MANIFEST.json"]
    own = {"MANIFEST.json", "part-0", "part-1", "state", "weights"}
    assert {file.name for file in path.iterdir()} == own  # of rank 0's node, without a download
    assert not list(away.folder.iterdir())
    for store in (three, checkpoints(url, tmp_path / "other")):
        assert store.newest() == (40, store.path(40))
        assert {file.name for file in store.path(40).iterdir()} == {*own, "part-2", "part-3"}
    assert not three.skipped


def test_a_part_that_cannot_be_uploaded_is_one_sentence_and_harms_nothing(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    away = checkpoints(url, tmp_path / "away")
    away._bucket = Bucket(url.replace(BUCKET, "no-such-bucket"))
    with pytest.raises(
        UserError, match=r"checkpoint of step 40 could not be stored: .*NoSuchBucket"
    ) as found:
        commit_parts(three, 40, [three, away])
    assert str(found.value).endswith(
        "run the same command to resume from the last stored checkpoint"
    )
    assert not list(away.folder.iterdir())
    assert three.steps() == [10, 20, 30]
    assert not list(three.folder.glob(".inprogress*"))
    assert not [name for name in Bucket(url).names("run") if "00000040" in name]


def test_a_full_disk_of_another_node_is_named(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    away = checkpoints(url, tmp_path / "away")

    def full(_: Path) -> list[Path]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError) as found:
        three.commit(40, lambda _: away.write_part(40, str(three.attempt), full))
    assert str(found.value).startswith(
        f"checkpoint of step 40 could not be written to {away.folder} on node {platform.node()}: No "
        "space left on device; make room"
    )


def test_parts_of_an_attempt_that_is_superseded_meanwhile_do_not_stay(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    successor = checkpoints(url, tmp_path / "successor")

    def write(_: Path) -> dict[str, Any]:
        successor.claim()
        successor.commit(40, writer("successor"))
        return three.write_part(40, str(three.attempt), part_writer("part-0"))

    with pytest.raises(SupersededError):
        three.commit(40, write)
    left = {name.split("/")[2] for name in Bucket(url).names("run") if "00000040" in name}
    assert left == {f"step-00000040-{start(successor)}"}


def test_a_node_without_rank_0_deletes_what_is_old(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    """Younger files may be those of an attempt that has superseded this one."""
    away = checkpoints(url, tmp_path / "away")
    left = away.folder / ".inprogress-00000030-dead-0123"  # of a killed worker
    for is_old in (False, True):
        copy = away.bring(30)
        left.mkdir(exist_ok=True)
        if is_old:
            for path in (copy, left):
                os.utime(path, (1, 1))
        commit_parts(three, 40 + is_old, [three, away])
        assert (copy.exists(), left.exists()) == (not is_old, not is_old)


def test_a_superseded_attempt_deletes_nothing_of_its_successor_on_the_same_node(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    """It wakes up between its successor's local commit and the upload, also where parts are away."""
    successor = checkpoints(url, three.folder)
    away = checkpoints(url, tmp_path / "away")
    woken = []

    def wake(sleeper: Callable[[], Any]) -> None:
        with pytest.raises(SupersededError):
            sleeper()
        woken.append(sleeper)

    def publish() -> None:
        if len(woken) == 1:
            wake(lambda: three.commit(40, writer("zombie")))

    def sleep(_: Path) -> None:
        """Superseded while it writes; its own check comes before its successor's upload."""
        successor._publish = publish
        successor.claim()
        wake(lambda: three.keep({10}))
        commit_parts(successor, 40, [successor, away])
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    with pytest.raises(SupersededError):
        three.commit(40, sleep)
    assert len(woken) == 2
    for store in (successor, checkpoints(url, tmp_path / "other")):
        assert store.newest() == (40, store.path(40))
    assert (successor.path(40) / "state").read_text() == "step 40"


def test_a_part_that_is_uploaded_after_the_takeover_does_not_stay(
    url: str, three: BucketCheckpoints, tmp_path: Path
) -> None:
    checkpoints(url, tmp_path / "successor").claim()
    away = checkpoints(url, tmp_path / "away")
    with pytest.raises(SupersededError):
        away.write_part(40, str(three.attempt), part_writer("part-1"))
    assert not [name for name in Bucket(url).names("run") if "00000040" in name]


def test_a_checkpoint_whose_index_was_written_is_not_discarded(
    url: str, three: BucketCheckpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The answer was lost, so the attempt does not know that the index lists the checkpoint."""
    write = Bucket.write

    def lose(bucket: Bucket, name: str, *args: Any, **kwargs: Any) -> Any:
        write(bucket, name, *args, **kwargs)
        raise UserError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "write", lose)
        with pytest.raises(UserError, match="no answer"):
            three.commit(40, writer("step 40"))
    with pytest.raises(UserError, match="could not be written"):
        three.commit(40, lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    assert checkpoints(url, tmp_path / "other").newest() is not None
    assert checkpoints(url, tmp_path / "other").steps()[-1] == 40
    other = checkpoints(url, tmp_path / "third")
    assert other.newest() == (40, other.path(40))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_request_the_commit_is_never_torn(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """At the n-th write, upload or delete, for all n: the old checkpoint or the new one."""
    calls = stop_at = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("write", "upload", "delete"):
        monkeypatch.setattr(Bucket, name, deadly(getattr(Bucket, name)))
    outcomes = set()
    for attempt in range(1, 40):
        place, machine = f"{url}/{attempt}", tmp_path / str(attempt)
        stop_at, acknowledged, ended = 0, False, False
        store = checkpoints(place, machine)
        store.claim()
        store.commit(10, writer("old"))
        parts = [checkpoints(place, machine.with_name(f"{attempt}-{n}")) for n in range(workers)]
        calls, stop_at = 0, attempt
        with contextlib.suppress(Killed):
            commit_parts(store, 20, parts)
            acknowledged = True
            store.keep({20})
            ended = True
        stop_at = 0
        after = checkpoints(place, tmp_path / f"after-{attempt}")
        after.claim()
        found = after.newest()
        assert found is not None
        assert not after.skipped
        outcomes.add(found[0])
        assert found[0] == 20 or not acknowledged
        left = {name.split("/")[2] for name in Bucket(place).names("run/checkpoints")}
        assert len(left) == len(after.steps()) + 1  # nothing half-written outlives a claim
        if ended:
            break
    assert ended
    assert outcomes == {10, 20}
