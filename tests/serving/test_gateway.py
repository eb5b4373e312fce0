"""The gateway alone, over models that wait, break off and die: who takes a place, who is told what."""

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from support.serve_requests import JSON
from support.serving_locally import serving

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.http import GatewayMetrics, RayGatewayMetrics
from trainyard.serving.gateway.keys import KeyRing, new_key
from trainyard.serving.gateway.middleware import access_log
from trainyard.serving.options import GatewayOptions
from trainyard.serving.replica.batcher import BatchRecord
from trainyard.serving.replica.metrics import RayReplicaMetrics

GOOD = b'{"inputs": "bana"}'
WITHIN = "x-request-timeout-seconds"


class Models:
    """One model, `mail`, which does what `inputs` says: answer when `gate` is open, break, die."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Semaphore(0)

    def names(self) -> list[str]:
        return ["mail"]

    def waiting_for(self) -> list[str]:
        return []

    def loading(self) -> dict[str, str]:
        return {}

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        del name, seconds
        self.asked.release()
        if b"break" in body:
            raise ZeroDivisionError
        if b"die" in body:
            raise RequestError("unavailable", "model 'mail' cannot answer now; try again", 1)
        while not self.gate.is_set():
            await asyncio.sleep(0.005)
        return Answer(200, b"[]")

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        del name, seconds
        if b"silent" in body:
            await asyncio.sleep(60)
        if b"wait" in body:
            self.asked.release()
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
        yield b'data:{"index": 1}\n\n'
        if b"die" in body:
            raise RequestError("unavailable", "model 'mail' cannot answer now; try again", 1)
        if b"break" in body:
            raise ZeroDivisionError
        if b"pause" in body:
            await asyncio.sleep(60)
        yield b"data: [DONE]\n\n"

    async def describe(self, name: str) -> dict[str, Any]:
        return {"task": name}


class Counted(GatewayMetrics):
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def refused(self, model: str, kind: str) -> None:
        self.found.append((model, kind))


def ask(
    url: str,
    body: bytes = GOOD,
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/models/mail",
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, path, body, JSON | (headers or {}))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def connect(url: str, announced: int, sent: bytes, *headers: str) -> socket.socket:
    """A client that announces a body and sends a part of it."""
    address = urlsplit(url)
    one = socket.create_connection((address.hostname, address.port))
    lines = [
        "POST /models/mail HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {announced}",
        *headers,
    ]
    one.sendall("\r\n".join([*lines, "", ""]).encode() + sent)
    return one


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """What the access log says."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]
    level = access_log.level
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    yield records
    access_log.removeHandler(handler)
    access_log.setLevel(level)


def line_of(log: list[logging.LogRecord]) -> logging.LogRecord:
    """The one line that comes."""
    deadline = time.monotonic() + 5
    while not log and time.monotonic() < deadline:
        time.sleep(0.01)
    (record,) = log
    return record


def test_clients_that_drip_take_no_place() -> None:
    options = GatewayOptions(body_seconds=30, concurrent_requests=4)
    with serving(Models(), options) as url, contextlib.ExitStack() as dripping:
        for _ in range(20):
            dripping.enter_context(connect(url, 50, b"{"))
        time.sleep(0.2)
        assert [ask(url)[0] for _ in range(40)] == [200] * 40


def test_more_than_may_be_in_work_is_refused_with_a_time_to_come_again() -> None:
    models = Models()
    models.gate.clear()
    with serving(models, GatewayOptions(concurrent_requests=1)) as url:
        with connect(url, len(GOOD), GOOD) as first:
            assert models.asked.acquire(timeout=5)
            with connect(url, len(GOOD), GOOD) as second:
                told = second.recv(1000).lower()
            assert told.startswith(b"http/1.1 429")
            assert b"retry-after: 1\r\n" in told
            assert json.loads(ask(url)[1])["error_type"] == "overloaded"
            with connect(url, 50, b"{") as unread:  # at once, not when its body is here
                assert unread.recv(1000).startswith(b"HTTP/1.1 429")
            models.gate.set()
            assert first.recv(100).startswith(b"HTTP/1.1 200")
        assert ask(url)[0] == 200


def test_large_bodies_that_do_not_end_give_way_to_small_ones() -> None:
    options = GatewayOptions(body_seconds=30, unread_bytes=10_000)
    with serving(Models(), options) as url, contextlib.ExitStack() as hanging:
        large = [hanging.enter_context(connect(url, 6000, b"x" * size)) for size in (4990, 5005)]
        time.sleep(0.2)
        assert [ask(url)[0] for _ in range(5)] == [200] * 5, "5 bytes of room are room for them"
        large[0].sendall(b"x" * 20)
        assert large[0].recv(100).startswith(b"HTTP/1.1 429")
        assert [ask(url)[0] for _ in range(5)] == [200] * 5


def test_a_caller_who_leaves_while_sending_is_no_error(log: list[logging.LogRecord]) -> None:
    watch = Counted()
    with serving(Models(), GatewayOptions(), None, watch) as url:
        connect(url, 50, b"{", "X-Request-Id: gone").close()
        line = line_of(log)
    assert (line.levelname, line.exc_info) == ("INFO", None)
    assert json.loads(line.getMessage())["status"] == 499
    assert watch.found == [("mail", "left")]


@pytest.mark.parametrize(
    ("inputs", "seconds", "kind", "sentence"),
    [
        ("die", "20", "unavailable", "model 'mail' cannot answer now; try again"),
        ("break", "20", "failed", "the stream broke off"),
        ("pause", "0.3", "late", "no answer in time"),
    ],
)
def test_a_stream_that_breaks_off_says_so_last(
    inputs: str, seconds: str, kind: str, sentence: str
) -> None:
    watch = Counted()
    with serving(Models(), GatewayOptions(), None, watch) as url:
        body = json.dumps({"inputs": inputs, "stream": True}).encode()
        status, text = ask(url, body, {WITHIN: seconds})
    first, last = (json.loads(line[5:]) for line in text.splitlines() if line)
    assert (status, first) == (200, {"index": 1})
    assert sentence in last["error"]
    assert watch.found == [("mail", kind)]


def test_a_stream_that_does_not_begin_is_late() -> None:
    with serving(Models(), GatewayOptions()) as url:
        body = b'{"inputs": "silent", "stream": true}'
        status, text = ask(url, body, {WITHIN: "0.3"})
    assert (status, json.loads(text)["error_type"]) == (503, "overloaded")


def test_a_caller_who_leaves_before_a_stream_begins_gives_the_place_back() -> None:
    models = Models()
    models.gate.clear()
    body = b'{"inputs": "wait", "stream": true}'
    with serving(models, GatewayOptions(concurrent_requests=1)) as url:
        with connect(url, len(body), body):
            assert models.asked.acquire(timeout=5)
            assert ask(url)[0] == 429
        time.sleep(0.2)  # until the server knows
        models.gate.set()
        deadline = time.monotonic() + 5
        while (status := ask(url)[0]) != 200:
            assert (status, time.monotonic() < deadline) == (429, True)
            time.sleep(0.05)


def test_every_refusal_is_counted_by_model_and_kind(tmp_path: Path) -> None:
    secret, key = new_key("all")
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([key.model_dump(mode="json", exclude_none=True)]))
    models, watch = Models(), Counted()
    options = GatewayOptions(body_bytes=100, body_seconds=0.2, concurrent_requests=1)
    bearer = {"authorization": f"Bearer {secret}"}
    with serving(models, options, KeyRing(str(file)), watch) as url:
        statuses = [
            ask(url)[0],
            ask(url, headers=bearer, path="/models/none")[0],
            ask(url, headers=bearer, path="/none")[0],
            ask(url, headers=bearer, method="PUT")[0],
            ask(url, b"x" * 200, bearer)[0],
            ask(url, b"die", bearer)[0],
            ask(url, b"break", bearer)[0],
        ]
        with connect(url, 50, b"{", f"Authorization: Bearer {secret}") as slow:
            statuses.append(int(slow.recv(100).split()[1]))
        models.asked = threading.Semaphore(0)
        models.gate.clear()
        with connect(url, len(GOOD), GOOD, f"Authorization: Bearer {secret}") as first:
            assert models.asked.acquire(timeout=5)
            statuses.append(ask(url, headers=bearer)[0])
            models.gate.set()
            first.recv(100)
        models.gate.clear()
        statuses.append(ask(url, GOOD, bearer | {WITHIN: "0.2"})[0])
    assert list(zip(statuses, watch.found, strict=True)) == [
        (401, ("mail", "unauthorized")),
        (404, ("", "not_found")),
        (404, ("", "not_found")),
        (405, ("mail", "method")),
        (413, ("mail", "too_large")),
        (503, ("mail", "unavailable")),
        (500, ("mail", "failed")),
        (408, ("mail", "slow_body")),
        (429, ("mail", "overloaded")),
        (503, ("mail", "late")),
    ]


def test_a_defect_is_answered_in_json_and_logged(log: list[logging.LogRecord]) -> None:
    with serving(Models()) as url:
        status, text = ask(url, b"break")
    assert (status, json.loads(text)["error_type"]) == (500, "generation")
    assert sorted(record.levelname for record in log) == ["ERROR", "INFO"]


def test_each_request_is_one_line_of_the_access_log(
    log: list[logging.LogRecord], tmp_path: Path
) -> None:
    secret, key = new_key("reports")
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([key.model_dump(mode="json", exclude_none=True)]))
    with serving(Models(), keys=KeyRing(str(file))) as url:
        ask(url, GOOD, {"x-request-id": "one", "authorization": f"Bearer {secret}"})
        line = json.loads(line_of(log).getMessage())
        log.clear()
        ask(url, GOOD, {"x-request-id": "two", "authorization": "Bearer no"})
        refused = json.loads(line_of(log).getMessage())
    assert 0 <= line.pop("ms") < 5000
    assert line == {
        "id": "one", "method": "POST", "path": "/models/mail", "status": 200, "key": "reports",
    }  # fmt: skip
    assert (refused["id"], refused["status"], refused["key"]) == ("two", 401, "")


def test_rays_metrics_take_what_they_are_told() -> None:
    """They refuse a tag that they were not made for; no cluster is needed to find that out."""
    RayGatewayMetrics().refused("mail", "late")
    watch = RayReplicaMetrics("mail")
    watch.answered(1.0)
    watch.timed(0.1, 0.0, 0.2)
    watch.refused("late")
    watch.waiting(3)
    watch.batch(BatchRecord(1, 2, 3, 4.0))
