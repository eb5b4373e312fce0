import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from trainyard.errors import DamagedRun, UserError
from trainyard.storage.folder import RunFolder
from trainyard.storage.lease import LEASE, Lease
from trainyard.storage.store import Disk


def test_metrics_are_rewound_and_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        folder.append_metrics({"step": step, "loss": step / 7})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert [line["step"] for line in folder.metrics()] == [10, 20, 30]
    folder.rewind_metrics(20)
    assert folder.metrics() == [{"step": 10, "loss": 10 / 7}, {"step": 20, "loss": 20 / 7}]


def test_damage_after_the_last_checkpoint_is_dropped_with_its_lines(tmp_path: Path) -> None:
    """A checkpoint makes the lines before it durable; a power cut may leave holes in later ones."""
    folder = RunFolder(tmp_path)
    for step in (10, 20):
        folder.append_metrics({"step": step})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b"\0" * 40 + b'\n{"step": 30}\n[4]\n')
    with pytest.raises(DamagedRun, match=r"metrics\.jsonl is damaged; use --fresh"):
        folder.rewind_metrics(30)
    folder.rewind_metrics(20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    (tmp_path / "metrics.jsonl").write_bytes(b"{\n" + whole)
    with pytest.raises(DamagedRun):
        folder.rewind_metrics(20)


def test_fresh_removes_links_and_leaves_what_they_lead_to(tmp_path: Path) -> None:
    """The record goes last: a folder without it is refused."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "step-00000010").mkdir(parents=True)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.checkpoints.symlink_to(elsewhere)
    (folder.path / "ledger").mkdir()
    folder.update(status="stopped")
    folder.clear()
    assert folder.names() == []
    assert [path.name for path in elsewhere.iterdir()] == ["step-00000010"]


def test_fresh_can_be_repeated_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.update(status="stopped")
    for name in ("a", "z"):
        (tmp_path / name).mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        with pytest.raises(PermissionError):
            folder.clear()
    assert folder.read() == {"status": "stopped"}
    folder.clear()
    assert folder.names() == []


def test_an_unwritable_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--storage-path: .*cannot be written"):
        RunFolder(tmp_path / "file" / "run").create()


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "fini')
    with pytest.raises(UserError, match="is damaged; use --fresh"):
        RunFolder(tmp_path).read()


def refuse(folder: RunFolder, before: Callable[[], object]) -> None:
    with folder.lease():
        before()
        raise UserError("refused")


def test_a_refused_job_leaves_no_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "new")
    with pytest.raises(UserError, match="refused"):
        refuse(folder, lambda: (folder.path / "log.txt").write_text("said"))
    assert not list(tmp_path.iterdir())


def test_a_refused_job_keeps_what_has_a_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="refused"):
        refuse(folder, lambda: folder.update(status="running"))
    assert folder.read() == {"status": "running"}


def test_a_driver_that_waits_for_one_that_is_refused_gets_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one removes the folder, which was empty until it came."""
    path = tmp_path / "runs" / "new"
    waits, holds, take = threading.Event(), threading.Event(), Lease._take

    def second() -> None:
        with RunFolder(path).lease(20):
            (path / "log.txt").write_text("second")
            holds.set()

    def seen(lease: Lease) -> object:
        if threading.current_thread() is not thread:
            return take(lease)
        if waits.is_set():
            refused.wait(10)  # until the folder is gone
        holder = take(lease)
        waits.set()
        return holder

    thread, refused = threading.Thread(target=second, daemon=True), threading.Event()
    monkeypatch.setattr(Lease, "_take", seen)

    def let_it_wait() -> None:
        thread.start()
        assert waits.wait(10)

    with pytest.raises(UserError, match="refused"):
        refuse(RunFolder(path), let_it_wait)
    assert not path.exists()
    refused.set()
    assert holds.wait(10)
    thread.join()
    with pytest.raises(UserError, match="cannot be written"):  # a late heartbeat
        Disk(tmp_path / "deleted").write(LEASE, b"{}", over={"sha256": "0"})
    assert not (tmp_path / "deleted").exists()


def test_a_refused_job_leaves_the_log_of_the_next_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, give_back = RunFolder(tmp_path / "run"), Lease.__exit__
    with contextlib.ExitStack() as stack:

        def then_the_next(lease: Lease, *raised: object) -> None:
            give_back(lease, *raised)
            monkeypatch.setattr(Lease, "__exit__", give_back)
            stack.enter_context(RunFolder(folder.path).lease())
            (folder.path / "log.txt").write_text("of the next")

        monkeypatch.setattr(Lease, "__exit__", then_the_next)
        with pytest.raises(UserError, match="refused"):
            refuse(folder, lambda: (folder.path / "log.txt").write_text("said"))
        assert (folder.path / "log.txt").read_text() == "of the next"
