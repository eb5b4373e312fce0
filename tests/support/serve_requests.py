"""Requests of tests to Ray Serve: one at a time, continuously, or until a condition holds."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

JSON = {"content-type": "application/json"}
BODY = b'{"inputs": "bana cola"}'


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, JSON), timeout=60
        ) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Load:
    """Continuous requests from two threads; `found` counts answers by status and label or error."""

    def __init__(self, url: str) -> None:
        self.found: Counter[Any] = Counter()
        self._url, self._stop = url, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            status, answer = ask(self._url, BODY)
            self.found[status, answer[0][0]["label"][0] if status == 200 else answer["error"]] += 1

    def wait_for(self, key: Any, more: int = 20) -> None:
        deadline, before = time.monotonic() + 60, self.found[key]
        while self.found[key] < before + more:
            assert time.monotonic() < deadline, self.found
            time.sleep(0.05)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refusal(url: str) -> str:
    """Wait for a replica that refuses its version; return the reason.

    Replicas refuse a version independently, and any of them may answer.
    """
    deadline = time.monotonic() + 30
    while "refused" not in (about := ask(url)[1]):
        assert time.monotonic() < deadline, about
        time.sleep(0.1)
    return str(about["refused"]["error"])
