"""Requests with arbitrary headers, and models that echo the body of a request."""

import asyncio
import http.client
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from support.serve_requests import JSON

from trainyard.serving.answer import Answer
from trainyard.serving.gateway.keys import KeyRing, new_key

BODY = b'{"inputs": "bana"}'


class Echo:
    """Models that echo the body of a request; `describe` waits until `gate` is set."""

    def __init__(self, *names: str) -> None:
        self._names = sorted(names)
        self.gate = threading.Event()
        self.gate.set()
        self.described = 0

    def names(self) -> list[str]:
        return self._names

    def waiting_for(self) -> list[str]:
        return []

    def loading(self) -> dict[str, str]:
        return {}

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        del seconds
        return Answer(200, json.dumps([name, body.decode("utf-8", "replace")]).encode())

    def stream(self, name: str, body: bytes, seconds: float) -> Any:
        raise NotImplementedError

    async def describe(self, name: str) -> dict[str, Any]:
        self.described += 1
        while not self.gate.is_set():
            await asyncio.sleep(0.005)
        return {"task": name}


def ask(
    url: str, method: str = "POST", path: str = "/models/mail", body: Any = BODY,
    **headers: str,
) -> tuple[int, Any, dict[str, str]]:  # fmt: skip
    """Send a request; return its status, parsed JSON (else None) and headers.

    A header with an empty value is not sent.
    """
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    named = JSON | {key.replace("_", "-"): value for key, value in headers.items()}
    connection.request(
        method, path, None if method == "GET" else body, {k: v for k, v in named.items() if v}
    )
    response = connection.getresponse()
    text = response.read()
    connection.close()
    found = {key.lower(): value for key, value in response.getheaders()}
    is_json = found.get("content-type") == "application/json" and text
    return response.status, json.loads(text) if is_json else None, found


def with_keys(folder: Path, **more: Any) -> tuple[str, KeyRing]:
    secret, key = new_key("all")
    entry = key.model_dump(mode="json", exclude_none=True) | more
    (folder / "keys.yaml").write_text(yaml.safe_dump([entry]))
    return f"Bearer {secret}", KeyRing(str(folder / "keys.yaml"))
