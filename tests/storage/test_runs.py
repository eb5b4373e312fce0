from pathlib import Path

import pytest

from trainyard.errors import UserError
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


def test_an_unwritable_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--storage-path: .*cannot be written"):
        RunFolder(tmp_path / "file" / "run").create()


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "fini')
    with pytest.raises(UserError, match="is damaged; use --fresh"):
        RunFolder(tmp_path).read()
