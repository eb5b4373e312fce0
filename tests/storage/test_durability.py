"""What a commit promises beyond what SIGKILL can show: the order of its writes, and who may undo it."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from storage.test_checkpoints import writer

from trainyard.errors import SupersededError
from trainyard.storage.atomic import replace_folder, sync_tree, write_atomic
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.folder import RunFolder
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


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is made durable, and of what is renamed, in order."""
    seen: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def traced(handle: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)  # noqa: PTH115
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        seen.append(f"rename to {target.name}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> Path:
        seen.append(f"replace {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", traced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    return seen


def test_the_journal_is_durable_before_a_checkpoint_that_refers_to_it(
    tmp_path: Path, synced: list[str]
) -> None:
    run = RunFolder(tmp_path)
    store = run.store()
    store.claim()
    run.append_metrics({"step": 10, "loss": 0.5})
    store.commit(10, writer("new"))
    assert synced.index("metrics.jsonl") < synced.index("rename to step-00000010")


def test_predictions_are_durable_under_their_name(tmp_path: Path, synced: list[str]) -> None:
    RunFolder(tmp_path).write_predictions({"validation": np.zeros((3, 2), np.float32)})
    at = synced.index("replace validation.npy")
    assert synced[at - 1].startswith(".validation.npy.")
    assert synced[at + 1] == "predictions"


def test_folders_inside_a_folder_are_made_durable_too(tmp_path: Path, synced: list[str]) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    sync_tree(tmp_path)
    assert synced == ["file", "inner", "outer", tmp_path.name]


@pytest.mark.parametrize("write", [write_atomic, Path.write_text], ids=["atomic", "plain"])
def test_processes_of_one_id_in_two_containers_do_not_share_a_scratch_file(
    tmp_path: Path, write: Callable[[Path, str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes the same file while the first makes its own durable."""
    fsync, pending = os.fsync, [write]

    def second(handle: int) -> None:
        if pending:
            pending.pop()(tmp_path / "run.json", "second")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", second)
    write_atomic(tmp_path / "run.json", "first")
    assert (tmp_path / "run.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_is_replaced_while_another_process_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "engine", Path.rename
    for name in ("engine", "ours", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    monkeypatch.setattr(Path, "rename", lambda path, to: faster(path, to))

    def faster(path: Path, to: Path) -> Path:
        if path.name == "ours" and (tmp_path / "theirs").exists():
            rename(tmp_path / "theirs", target)
        return rename(path, to)

    replace_folder(target, tmp_path / "ours")
    assert (target / "file").read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    with pytest.raises(FileNotFoundError):
        replace_folder(target, tmp_path / "absent")
    (tmp_path / "engine").mkdir(exist_ok=True)
    replace_folder(target, None)
    replace_folder(target, None)
    assert not list(tmp_path.iterdir())
