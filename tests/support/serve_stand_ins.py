"""Stand-ins for Serve, to test the gateway: a status, handles, replicas with connections."""

import asyncio
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainyard.serving.answer import Answer
from trainyard.serving.gateway import discovery
from trainyard.serving.gateway.discovery import ServeModels, _Model
from trainyard.serving.options import MODEL
from trainyard.serving.transport import Address, ConnectionServer

HOST = "127.0.0.1"


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.005)


def models(remote: Callable[..., Any]) -> ServeModels:
    """Build the gateway's models: one, reached through Ray, whose replica answers by `remote`."""
    found = ServeModels()
    handle = SimpleNamespace(
        deployment_name=MODEL, app_name="mail", answer=SimpleNamespace(remote=remote)
    )
    found._models = {"mail": _Model(cast("Any", handle))}
    return found


def applications(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    """Make `serve.status` return the applications `found`, none of which has a config."""
    details = {"applications": {name: {"deployed_app_config": None} for name in found}}
    client = SimpleNamespace(get_serve_details=lambda: details)
    monkeypatch.setattr(discovery, "_get_global_client", lambda: client)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=found))


def one_running(
    monkeypatch: pytest.MonkeyPatch, deployment: str = MODEL, replicas: int = 1
) -> None:
    running = SimpleNamespace(replica_states={"RUNNING": replicas})
    mail = SimpleNamespace(
        deployments={deployment: running}, status="RUNNING", last_deployed_time_s=1
    )
    applications(monkeypatch, {"mail": mail})


def offering(
    offers: Callable[[], Any], deployment: str = MODEL, app_name: str = "mail", **more: Any
) -> Any:
    """Build a handle whose replicas report `offers()` as their info."""

    async def results(**_: Any) -> Any:
        return offers()

    return SimpleNamespace(
        deployment_name=deployment, app_name=app_name,
        broadcast=lambda _: SimpleNamespace(results_async=results), **more,
    )  # fmt: skip


async def echo(_: str, body: bytes, __: float) -> Answer:
    return Answer(200, b"by Ray: " + body)


class Replicas:
    """Replicas that are reached by connections, and that can be lost.

    Each answers after `seconds`, once `gate` is set. `sick` replicas answer 500 immediately.
    """

    def __init__(self, seconds: float = 0.0, sick: Collection[int] = ()) -> None:
        self.asked: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._seconds, self._sick = seconds, sick
        self._deadly: bytes | None = None
        self._killed: list[int] = []

    async def open(self, count: int) -> list[Address]:
        self.servers = [ConnectionServer(self._answer(index)) for index in range(count)]
        return [await server.open(HOST) for server in self.servers]

    def kill_on(self, body: bytes) -> list[int]:
        """Make `body` end each replica that computes it; return the growing list of ended ones."""
        self._deadly = body
        return self._killed

    def _answer(self, index: int) -> Callable[[bytes, float], Any]:
        async def answer(body: bytes, _: float) -> Answer:
            self.asked.append(index)
            if index in self._sick:
                return Answer(500, b"{}")
            if body == self._deadly:
                await asyncio.sleep(self._seconds / 2)  # until others are in flight, too
                self._killed.append(index)
                for connection in list(self.servers[index].connections):
                    connection._transport.abort()
            await asyncio.sleep(self._seconds)
            await self.gate.wait()
            return Answer(200, b"by connection: " + body)

        return answer
