import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainyard.errors import UserError
from trainyard.storage import lease as leases
from trainyard.storage.folder import RunFolder
from trainyard.storage.lease import EXPIRY_SECONDS, LEASE, Lease
from trainyard.storage.store import Disk

HOLD = """
import sys, time
from pathlib import Path
from trainyard.storage.folder import JobFolder
with JobFolder(Path(sys.argv[1])).lease():
    print("held", flush=True)
    time.sleep(60)
"""


def lease_of(folder: Path) -> Lease:
    return Lease(Disk(folder), LEASE, "run 'run'")


def hold_in_another_process(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_and_a_killed_one_is_succeeded_at_once(tmp_path: Path) -> None:
    process = hold_in_another_process(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=f"already being run by process {process.pid} on"),
            lease_of(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with lease_of(tmp_path):
        assert (tmp_path / LEASE).exists()
    assert not list(tmp_path.iterdir())


def test_a_lease_of_another_host_expires(tmp_path: Path) -> None:
    lease = tmp_path / LEASE
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "id": "x"}))
    with pytest.raises(UserError, match="process 1 on elsewhere"), lease_of(tmp_path):
        pass
    long_ago = time.time() - EXPIRY_SECONDS - 1
    os.utime(lease, (long_ago, long_ago))
    with lease_of(tmp_path):
        assert json.loads(lease.read_text())["pid"] == os.getpid()


def test_a_reused_process_id_does_not_hold_a_lease(tmp_path: Path) -> None:
    process = hold_in_another_process(tmp_path)
    record = json.loads((tmp_path / LEASE).read_text())
    process.kill()
    process.wait()
    (tmp_path / LEASE).write_text(json.dumps({**record, "pid": os.getpid()}))
    with lease_of(tmp_path):
        pass


def test_a_process_of_another_container_is_not_looked_for_here(tmp_path: Path) -> None:
    """Containers may share the host's name (docker run --network host), not its process ids."""
    lease = tmp_path / LEASE
    with lease_of(tmp_path):
        record = json.loads(lease.read_text())
    for changed in ({"processes": "pid:[1]"}, {"host": "elsewhere"}):
        lease.write_text(json.dumps({**record, "pid": 2**22 + 1, **changed}))
        with pytest.raises(UserError, match="already being run by process"), lease_of(tmp_path):
            pass
    lease.write_text(json.dumps({**record, "pid": 2**22 + 1}))
    with lease_of(tmp_path):
        pass


def test_a_lease_outlives_a_storage_that_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[str] = []
    replace = Path.replace

    def sometimes(path: Path, target: Path) -> Path:
        beats.append("failed" if len(beats) < 2 else "got through")
        if beats[-1] == "failed":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(path, target)

    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with lease_of(tmp_path):
        monkeypatch.setattr(Path, "replace", sometimes)
        deadline = time.monotonic() + 10
        while "got through" not in beats and time.monotonic() < deadline:
            time.sleep(0.01)
    assert beats[:3] == ["failed", "failed", "got through"]


def test_a_lease_on_a_full_disk_is_one_sentence_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left"), lease_of(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


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
