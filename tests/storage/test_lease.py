"""Leases on disk and in a bucket: a live driver keeps its own, and one that lost it writes nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from support.bucket_here import endpoint, url

from trainyard.errors import SupersededError, UserError
from trainyard.storage import lease as leases
from trainyard.storage import store as stores
from trainyard.storage.folder import RunFolder
from trainyard.storage.lease import EXPIRY_SECONDS, LEASE, Lease, lives, this_process
from trainyard.storage.store import Bucket, Conflict, Disk, Expected, Store, Version

__all__ = ["endpoint", "url"]  # fixtures

HOLD = """
import os, signal, sys, time
from pathlib import Path
from trainyard.errors import SupersededError
from trainyard.storage import lease as leases
from trainyard.storage import store as stores
from trainyard.storage.folder import RunFolder

leases.HEARTBEAT_SECONDS = 0.2
folder = RunFolder(Path(sys.argv[1]))
try:
    with folder.lease() as lease:
        folder.update(status="held")
        print("held", flush=True)
        while True:
            if (folder.path / "suspend").exists():
                (folder.path / "suspend").unlink()
                os.kill(os.getpid(), signal.SIGSTOP)
            lease.poll()
            folder.update(status="held")
            time.sleep(0.05)
except SupersededError as error:
    print(error, flush=True)
"""


def lease_of(store: Store) -> Lease:
    return Lease(store, LEASE, "run 'run'")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver in another process, which holds the lease of the run at `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Disk(tmp_path)
    address: str = request.getfixturevalue("url")
    return Bucket(address)


def test_a_second_driver_is_refused_and_a_killed_one_is_succeeded_at_once(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with (
        pytest.raises(UserError, match=f"already being run by process {holder.pid} on"),
        RunFolder(tmp_path).lease(),
    ):
        pass
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path).lease():
        assert (tmp_path / LEASE).exists()
    assert not (tmp_path / LEASE).exists()


def test_a_step_of_the_clock_takes_no_lease_away(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NTP moves the boot time, from which psutil computes when a process was started."""
    assert holder.poll() is None
    before = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: before + 1)
    with pytest.raises(UserError, match="already being run"), RunFolder(tmp_path).lease():
        pass


@pytest.mark.parametrize("ahead", [-3600.0, 61.0, 3600.0])
def test_the_clock_of_a_host_takes_no_lease_away(
    store: Store, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage says how old a heartbeat is: the clocks of two hosts may differ by anything."""
    store.write(LEASE, json.dumps({"host": "elsewhere", "pid": 1, "id": "x"}).encode())
    there = time.time
    monkeypatch.setattr(time, "time", lambda: there() + ahead)
    with pytest.raises(UserError, match="process 1 on elsewhere"), lease_of(store):
        pass


def test_a_suspended_driver_is_succeeded_when_its_lease_expires_and_then_ends(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holder.stdout is not None
    (tmp_path / "suspend").touch()
    while psutil.Process(holder.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="already being run"), folder.lease():
        pass
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 1.0)
    with folder.lease(patience=10) as lease:
        folder.update(status="successor's")
        holder.send_signal(signal.SIGCONT)
        assert "run '" in (sentence := holder.stdout.readline())
        assert f"was taken over by process {os.getpid()} on" in sentence
        assert holder.wait(10) == 0
        assert folder.read() == {"status": "successor's"}
        lease.check()
    assert not (tmp_path / LEASE).exists()


def test_a_driver_suspended_while_it_replaced_its_lease_blocks_nobody_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "GUARD_SECONDS", 0.2)
    disk = Disk(tmp_path)
    version = disk.write(LEASE, b"{}")
    asleep, awake = threading.Event(), threading.Event()
    replace = Path.replace
    faults: list[Exception] = []

    def sleeps(path: Path, target: Path) -> Path:
        if threading.current_thread() is sleeper:
            asleep.set()
            awake.wait(30)
        return replace(path, target)

    def beat() -> None:
        try:
            disk.write(LEASE, b'{"id": "sleeper"}', over=version)
        except Conflict as error:
            faults.append(error)

    monkeypatch.setattr(Path, "replace", sleeps)
    sleeper = threading.Thread(target=beat)
    sleeper.start()
    assert asleep.wait(30)
    Disk(tmp_path).write(LEASE, b'{"id": "successor"}')
    awake.set()
    sleeper.join()
    assert faults
    assert (tmp_path / LEASE).read_bytes() == b'{"id": "successor"}'


def test_a_driver_suspended_while_it_gave_its_lease_back_takes_none_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw its own lease, then slept until another held it."""
    monkeypatch.setattr(stores, "GUARD_SECONDS", 0.2)
    disk = Disk(tmp_path)
    version = disk.write(LEASE, b"mine")
    expect, asleep, awake = disk._expect, threading.Event(), threading.Event()
    outcomes: list[str] = []

    def sleeps(name: str, over: Expected) -> None:
        expect(name, over)
        asleep.set()
        awake.wait(30)

    def retire() -> None:
        try:
            disk.retire(LEASE, b"", version)
            outcomes.append("deleted")
        except Conflict:
            outcomes.append("conflict")

    monkeypatch.setattr(disk, "_expect", sleeps)
    sleeper = threading.Thread(target=retire)
    sleeper.start()
    assert asleep.wait(30)
    Disk(tmp_path).write(LEASE, b"successor's")
    awake.set()
    sleeper.join()
    assert outcomes == ["conflict"]
    assert (tmp_path / LEASE).read_bytes() == b"successor's"


def test_the_clock_is_read_though_a_starting_driver_deletes_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that starts deletes all scratch files, also that of one that asks for the time."""
    fsync = os.fsync

    def deleted(handle: int) -> None:
        fsync(handle)
        for probe in tmp_path.glob(".probe.*"):
            probe.unlink()

    monkeypatch.setattr(os, "fsync", deleted)
    assert abs(Disk(tmp_path).clock().timestamp() - time.time()) < 5


def test_a_lease_of_another_host_expires(tmp_path: Path) -> None:
    lease = tmp_path / LEASE
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "id": "x"}))
    with pytest.raises(UserError, match="process 1 on elsewhere"), lease_of(Disk(tmp_path)):
        pass
    long_ago = time.time() - EXPIRY_SECONDS - 1
    os.utime(lease, (long_ago, long_ago))
    with lease_of(Disk(tmp_path)):
        assert json.loads(lease.read_text())["pid"] == os.getpid()


def test_a_dead_lease_from_before_the_clock_was_set_back_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dated an hour ahead, it would block for an hour and a minute."""
    content = json.dumps({"host": "elsewhere", "pid": 1, "id": "x"})
    (tmp_path / LEASE).write_text(content)
    ahead = time.time() + 3600
    os.utime(tmp_path / LEASE, (ahead, ahead))
    with pytest.raises(UserError, match="process 1 on elsewhere"), lease_of(Disk(tmp_path)):
        pass
    assert (tmp_path / LEASE).read_text() == content  # a holder that lives renews it as before
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.5)
    with Lease(Disk(tmp_path), LEASE, "run 'run'", patience=10) as lease:
        lease.check()


def test_who_lives() -> None:
    """A reused process id is another process; a lease of the first version tells no ticks."""
    here = this_process()
    assert lives(here, 0)
    assert not lives(here, EXPIRY_SECONDS)
    assert not lives({**here, "ticks": here["ticks"] - 1}, 0)
    assert not lives({**here, "pid": 2**22 + 1}, 0)
    first_version = {**here, "started": 0.0}
    del first_version["ticks"]
    assert lives(first_version, 0)
    assert not lives({**first_version, "pid": 2**22 + 1}, 0)
    # Containers may share the host's name (docker run --network host), not its process ids.
    for changed in ({"processes": "pid:[1]"}, {"host": "elsewhere"}):
        assert lives({**here, "pid": 2**22 + 1, **changed}, 0)


def test_a_killed_process_that_is_not_waited_for_holds_nothing(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with RunFolder(tmp_path).lease():
        pass


def test_of_many_that_take_over_a_dead_lease_one_gets_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(LEASE, json.dumps({**this_process(), "pid": 2**22 + 1}).encode())
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.0)
    held: list[str] = []
    refused: list[Exception] = []
    faults: list[Exception] = []
    done = threading.Event()

    def take() -> None:
        try:
            with lease_of(store) as lease:
                held.append(lease.id)
                done.wait(60)
                lease.check()
        except SupersededError as error:
            faults.append(error)
        except UserError as error:
            refused.append(error)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(held) + len(refused) + len(faults) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert (len(held), len(refused)) == (1, 7)


def test_compare_and_replace_are_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two of one writer no other replaces the object."""
    slow, quick = Disk(tmp_path), Disk(tmp_path)
    version = slow.write(LEASE, b"old")
    expect, compared, resume = slow._expect, threading.Event(), threading.Event()
    outcomes: dict[str, str] = {}

    def paused(name: str, over: Expected) -> None:
        expect(name, over)
        compared.set()
        resume.wait(30)

    def write(store: Disk, content: str) -> None:
        try:
            store.write(LEASE, content.encode(), over=version)
            outcomes[content] = "written"
        except Conflict:
            outcomes[content] = "conflict"

    monkeypatch.setattr(slow, "_expect", paused)
    first = threading.Thread(target=write, args=(slow, "slow"))
    second = threading.Thread(target=write, args=(quick, "quick"))
    first.start()
    assert compared.wait(30)
    second.start()
    second.join(0.5)
    resume.set()
    first.join()
    second.join()
    assert outcomes == {"slow": "written", "quick": "conflict"}


def test_a_slow_taker_does_not_remove_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the lease dead, then slept while another took it."""
    disk = Disk(tmp_path)
    disk.write(LEASE, json.dumps({**this_process(), "pid": 2**22 + 1}).encode())
    quick = lease_of(Disk(tmp_path))
    clock = disk.clock

    def asleep() -> datetime:
        quick.__enter__()
        return clock()

    monkeypatch.setattr(disk, "clock", asleep)
    with pytest.raises(UserError, match="already being run"), lease_of(disk):
        pass
    quick.check()
    quick.__exit__()
    assert not list(tmp_path.iterdir())


def test_a_late_heartbeat_does_not_undo_the_release(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write left before the lease was given back, and arrives after."""
    late, arrived = threading.Event(), threading.Event()
    write = store.write
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    lease = lease_of(store)
    lease.__enter__()

    def slow(name: str, content: bytes, *, over: Expected = None) -> Version:
        if b"beat" not in content:
            return write(name, content, over=over)
        late.wait(30)
        try:
            return write(name, content, over=over)
        except Conflict:
            arrived.set()
            raise

    monkeypatch.setattr(store, "write", slow)
    time.sleep(0.1)  # the heartbeat is on its way
    monkeypatch.setattr(lease._heart, "join", lambda timeout: timeout)
    lease.__exit__()
    late.set()
    assert arrived.wait(30)
    threading.Thread.join(lease._heart, 30)
    with lease_of(store):
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
    with lease_of(Disk(tmp_path)):
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

    monkeypatch.setattr(stores, "write_durable", full)
    with (
        pytest.raises(UserError, match=r"cannot be written \(No space left"),
        lease_of(Disk(tmp_path)),
    ):
        pass
    assert not list(tmp_path.iterdir())
