"""Objects and leases in a bucket, on a real S3 server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bucket_here import endpoint, url
from support.s3_server import BUCKET

from trainyard import TrainConfig, UserError, fit
from trainyard.doctor.cluster.nodes import marked
from trainyard.doctor.cluster.probe import examine
from trainyard.errors import SupersededError
from trainyard.storage import lease as leases
from trainyard.storage.lease import LEASE, Lease
from trainyard.storage.store import Bucket, Conflict

__all__ = ["endpoint", "url"]  # fixtures


def test_an_object_is_replaced_by_who_knows_its_version(url: str) -> None:
    bucket = Bucket(url)
    first = bucket.write("one", b"1", over="nothing")
    with pytest.raises(Conflict):
        bucket.write("one", b"2", over="nothing")
    second = bucket.write("one", b"2", over=first)
    with pytest.raises(Conflict):
        bucket.write("one", b"3", over=first)
    found = bucket.read("one")
    assert found is not None
    assert (found.content, found.version) == (b"2", second)
    assert bucket.read("none") is None
    assert bucket.names("") == ["one"]


def test_a_large_file_goes_in_parts_and_comes_back(url: str, tmp_path: Path) -> None:
    content = os.urandom(1000) * 20_000
    (tmp_path / "large").write_bytes(content)
    Bucket(url).upload("folder/large", tmp_path / "large")
    Bucket(url).download("folder/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def silent_server() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("environment", "change", "said"),
    [
        ({}, lambda url: url.replace(BUCKET, "no-such-bucket"), "NoSuchBucket"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, str, "InvalidAccessKeyId"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, str, "http://127.0.0.1:1: HTTP error"),
        ({"AWS_ENDPOINT_URL": "silent"}, str, "HTTP error"),
        ({}, lambda url: url.replace("s3://", "ftp://"), "starts with s3://, gs://"),
    ],
    ids=["bucket", "key", "endpoint", "silence", "scheme"],
)
def test_a_storage_that_cannot_be_used_is_one_sentence_within_seconds(
    url: str,
    environment: dict[str, str],
    change: Callable[[str], str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "TRAINYARD_TEST_S3" in os.environ and said == "InvalidAccessKeyId":
        pytest.skip("this server takes any key")
    listener, silent = silent_server()
    for name, value in environment.items():
        monkeypatch.setenv(name, silent if value == "silent" else value)
    started = time.monotonic()
    with listener, pytest.raises(UserError, match="storage_path") as refused:
        fit(TrainConfig(storage_path=change(url)))
    assert time.monotonic() - started < 15
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def lease_of(url: str) -> Lease:
    return Lease(Bucket(url), f"run/{LEASE}", "run 'run'")


HOLD = """
import sys, time
from trainyard.storage.store import Bucket
from trainyard.storage.lease import Lease
with Lease(Bucket(sys.argv[1]), "run/lease.json", "run 'run'"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_and_a_killed_one_is_succeeded_at_once(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"run 'run' is already .* process {process.pid} on"),
            lease_of(url),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with lease_of(url) as lease:
        lease.check()
    with lease_of(url), pytest.raises(SupersededError, match="was taken over by process"):
        lease.check()


def test_of_many_that_take_over_an_expired_lease_one_gets_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = {"host": "elsewhere", "pid": 1, "started": 0.0, "id": "x"}
    Bucket(url).write("run/lease.json", json.dumps(holder).encode())
    with pytest.raises(UserError, match="process 1 on elsewhere"), lease_of(url):
        pass
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 1)
    time.sleep(2.1)  # the bucket's clock counts in seconds
    held, refused, done = [], [], threading.Event()

    def take() -> None:
        try:
            with lease_of(url):
                held.append(1)
                done.wait(30)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(held) + len(refused) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(held), len(refused)) == (1, 7)
    done.set()
    for thread in threads:
        thread.join()


def test_the_doctor_asks_each_node_for_the_bucket(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with marked(url) as question:
        facts = examine(question)
        assert (facts["reads"], facts["writes"]) == (None, None)
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
            assert "http://127.0.0.1:1: HTTP error" in examine(question)["reads"]
    assert Bucket(url).names("") == []
