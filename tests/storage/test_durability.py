"""What a commit promises beyond what SIGKILL can show: the order of its writes, and who may undo it."""

import os
from pathlib import Path

import pytest
from storage.test_checkpoints import writer

from trainyard.errors import SupersededError
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.manifest import MANIFEST


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.claim()
    return store


def test_what_is_acknowledged_was_made_durable_in_order(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and its folder before the rename, the folder of checkpoints after it."""
    seen: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def traced(handle: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)  # noqa: PTH115
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        seen.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", traced)
    monkeypatch.setattr(Path, "rename", renamed)
    store.commit(40, writer("new"))
    at = seen.index("rename to step-00000040")
    scratch = f".inprogress-00000040-{store.attempt}"
    for name in ("weights", "state", MANIFEST):
        assert seen.index(name) < seen.index(scratch, seen.index(name)) < at
    assert seen[at + 1 :] == ["checkpoints"]


def test_an_attempt_that_slept_leaves_what_its_successor_committed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It falls asleep between the look at its claim and the rename: nothing can close that gap."""
    successor = CheckpointStore(store.folder)

    def asleep() -> None:
        successor.claim()
        successor.commit(40, writer("successor's"))

    with monkeypatch.context() as patch:
        patch.setattr(store, "check_claim", asleep)
        store.commit(40, writer("sleeper's"))
    assert successor.newest() == (40, successor.path(40))
    assert (successor.path(40) / "state").read_text() == "successor's"
    with pytest.raises(SupersededError):
        store.commit(50, writer("sleeper's"))
