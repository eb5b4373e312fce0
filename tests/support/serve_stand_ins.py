"""What the gateway needs of Serve, without it: a status, handles, and replicas at the end of lines."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.serving.answer import Answer
from trainyard.serving.gateway.discovery import ServeModels, _Known
from trainyard.serving.options import MODEL
from trainyard.serving.transport import Exchange, Place

HOST = "127.0.0.1"


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.005)


def models(remote: Callable[..., Any]) -> ServeModels:
    """The gateway's models with one that is asked through Ray: its replica's `answer` is `remote`."""
    found = ServeModels()
    handle = SimpleNamespace(
        deployment_name=MODEL, app_name="mail", answer=SimpleNamespace(remote=remote)
    )
    found._known = {"mail": _Known(handle)}
    return found


def applications(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    """What `serve.status` says."""
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=found))


def one_running(monkeypatch: pytest.MonkeyPatch, deployment: str = MODEL) -> None:
    running = SimpleNamespace(replica_states={"RUNNING": 1})
    mail = SimpleNamespace(deployments={deployment: running}, status="RUNNING")
    applications(monkeypatch, {"mail": mail})


def offering(
    offers: Callable[[], Any], deployment: str = MODEL, app_name: str = "mail", **more: Any
) -> Any:
    """A handle whose replicas say these offers."""

    async def results(**_: Any) -> Any:
        return offers()

    return SimpleNamespace(
        deployment_name=deployment, app_name=app_name,
        broadcast=lambda _: SimpleNamespace(results_async=results), **more,
    )  # fmt: skip


async def echo(_: str, body: bytes, __: float) -> Answer:
    return Answer(200, b"by Ray: " + body)


class Exchanges:
    """Replicas that can be asked by a line, and lost."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self, count: int) -> list[Place]:
        self.exchanges = [Exchange(self._answer(index)) for index in range(count)]
        return [await exchange.open(HOST) for exchange in self.exchanges]

    def _answer(self, index: int) -> Callable[[bytes, float], Any]:
        async def answer(body: bytes, _: float) -> Answer:
            self.asked.append(index)
            await self.gate.wait()
            return Answer(200, b"by line: " + body)

        return answer
