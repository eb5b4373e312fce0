from pathlib import Path

import pytest

from trainyard.errors import DamagedRun, UserError
from trainyard.storage.folder import RunFolder


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
