"""Requests that share calls: which go together, who leaves, what fails, and what a dead replica costs."""

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.serving.bundles import BUNDLE_BYTES, Bundler
from trainyard.serving.discovery import MODEL, TRIES, ServeModels, _Known
from trainyard.serving.failures import RequestError
from trainyard.serving.gateway import Answer

FAR = float("inf")
REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="nobody's")


class Replica:
    """Answers a body by itself when told to; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.contexts: list[str] = []
        self.cancelled = 0
        self.open = asyncio.Event()

    async def send(self, requests: Sequence[tuple[bytes, float]]) -> list[Answer]:
        self.calls.append([body for body, _ in requests])
        self.contexts.append(REQUEST.get())
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [Answer(200, body) for body, _ in requests]


async def asked(bundler: Bundler, *bodies: bytes) -> list["asyncio.Task[Answer]"]:
    tasks = [asyncio.ensure_future(bundler.ask(body, FAR)) for body in bodies]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def bodies(tasks: Sequence["asyncio.Task[Answer]"]) -> list[bytes]:
    async with asyncio.timeout(5):
        return [answer.body for answer in await asyncio.gather(*tasks)]


def test_a_request_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    async def run() -> None:
        replica = Replica()
        bundler = Bundler(replica.send, calls=2, size=3)
        tasks = await asked(bundler, b"a", b"b", b"c", b"d", b"e", b"f")
        assert replica.calls == [[b"a"], [b"b"]]
        replica.open.set()
        assert await bodies(tasks) == [b"a", b"b", b"c", b"d", b"e", b"f"]
        assert replica.calls[2:] == [[b"c", b"d", b"e"], [b"f"]]

    asyncio.run(run())


def test_large_bodies_go_by_themselves() -> None:
    async def run() -> None:
        replica = Replica()
        bundler = Bundler(replica.send, calls=1, size=32)
        large = b"x" * (BUNDLE_BYTES + 1)
        half = b"y" * (BUNDLE_BYTES // 2)
        tasks = await asked(bundler, b"first", large, b"b", half, half, b"c")
        replica.open.set()
        await bodies(tasks)
        assert replica.calls == [[b"first"], [large], [b"b", half], [half, b"c"]]

    asyncio.run(run())


def test_who_leaves_before_the_call_takes_the_request_along() -> None:
    async def run() -> None:
        replica = Replica()
        bundler = Bundler(replica.send, calls=1, size=8)
        tasks = await asked(bundler, b"a", b"b", b"c")
        tasks[1].cancel()
        await asyncio.sleep(0)
        replica.open.set()
        assert await bodies([tasks[0], tasks[2]]) == [b"a", b"c"]
        assert replica.calls == [[b"a"], [b"c"]]

    asyncio.run(run())


def test_a_call_is_cancelled_when_the_last_who_waits_for_it_leaves() -> None:
    async def run() -> None:
        replica = Replica()
        bundler = Bundler(replica.send, calls=1, size=8)
        tasks = await asked(bundler, b"a", b"b", b"c")
        tasks[0].cancel()  # it was alone in its call
        for _ in range(5):
            await asyncio.sleep(0)
        assert (replica.calls, replica.cancelled) == ([[b"a"], [b"b", b"c"]], 1)
        tasks[1].cancel()  # the other one still waits
        for _ in range(5):
            await asyncio.sleep(0)
        assert replica.cancelled == 1
        replica.open.set()
        assert await bodies(tasks[2:]) == [b"c"]

    asyncio.run(run())


def test_a_call_is_nobodys_context() -> None:
    """Serve cancels calls made in the context of a request whose client left."""

    async def run() -> None:
        replica = Replica()
        replica.open.set()
        REQUEST.set("the first caller's")
        await bodies(await asked(Bundler(replica.send), b"a"))
        assert replica.contexts == ["nobody's"]

    asyncio.run(run())


@pytest.mark.parametrize("error", [OSError("away"), asyncio.CancelledError()])
def test_nobody_waits_for_a_call_that_failed(error: BaseException) -> None:
    async def run() -> None:
        async def send(_: Sequence[tuple[bytes, float]]) -> list[Answer]:
            raise error

        async with asyncio.timeout(5):
            found = await asyncio.gather(
                *await asked(Bundler(send, calls=1, size=8), b"a", b"b"), return_exceptions=True
            )
        wanted = RequestError if isinstance(error, asyncio.CancelledError) else OSError
        assert [type(e) for e in found] == [wanted, wanted]

    asyncio.run(run())


def models(remote: Callable[..., Any]) -> ServeModels:
    """The gateway's models with one whose replica's `answer` is `remote`."""
    found = ServeModels()
    handle = SimpleNamespace(deployment_name=MODEL, answer=SimpleNamespace(remote=remote))
    bundler = found._bundler("mail")
    bundler.calls, bundler.size = 1, 8
    found._known = {"mail": _Known(handle, bundler)}
    return found


def test_a_request_that_kills_replicas_takes_nobody_along() -> None:
    from ray.exceptions import RayActorError

    calls: list[list[bytes]] = []

    async def remote(_: str, requests: list[tuple[bytes, float]]) -> list[Answer]:
        sent = [body for body, _ in requests]
        calls.append(sent)
        await asyncio.sleep(0)
        if b"deadly" in sent:
            raise RayActorError
        return [Answer(200, body) for body in sent]

    async def run() -> list[int]:
        asking = (found.ask("mail", body, 9) for body in (b"a", b"b", b"deadly", b"c"))
        return [answer.status for answer in await asyncio.gather(*asking)]

    found = models(remote)
    assert asyncio.run(run()) == [200, 200, 503, 200]
    assert calls[:2] == [[b"a"], [b"b", b"deadly", b"c"]]
    assert sorted(calls[2:]) == sorted([[b"b"], [b"c"]] + [[b"deadly"]] * (TRIES - 1))


def test_time_left_shrinks_while_a_request_waits() -> None:
    left: list[float] = []

    async def remote(_: str, requests: list[tuple[bytes, float]]) -> list[Answer]:
        left.extend(seconds for _, seconds in requests)
        await asyncio.sleep(0.05)
        return [Answer(200, body) for body, _ in requests]

    async def run() -> float:
        found, began = models(remote), time.monotonic()
        await asyncio.gather(*(found.ask("mail", b"x", 9) for _ in range(3)))
        return time.monotonic() - began

    took = asyncio.run(run())
    assert 9 - took <= left[0] <= 9
    assert [9 - took <= seconds <= 8.95 for seconds in left[1:]] == [True, True]


def test_a_model_stays_known_while_its_application_is_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve lists no deployments then, though the replicas serve on."""

    async def remote(_: str, requests: list[tuple[bytes, float]]) -> list[Answer]:
        return [Answer(200, body) for body, _ in requests]

    building = SimpleNamespace(deployments={}, status="DEPLOYING")
    applications = {"mail": building, "new": building}
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=applications))
    found = models(remote)
    found._known["mail"].handle.app_name = "mail"
    asyncio.run(found.refresh())
    assert (found.names(), found.waiting_for()) == (["mail"], ["new"])
    assert asyncio.run(found.ask("mail", b"x", 9)).status == 200
    del applications["mail"]
    asyncio.run(found.refresh())
    assert found.names() == []


def test_a_model_that_went_meanwhile_is_not_found() -> None:
    with pytest.raises(RequestError, match="no such model"):
        asyncio.run(ServeModels().ask("mail", b"x", 9))


class Call:
    """What Serve gives for a call, or for a stream of `events`; keeps whether it was cancelled."""

    def __init__(self, events: int = 0) -> None:
        self.cancelled = False
        self._events = events

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.get_running_loop().create_future().__await__()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._events):
            yield b"event"

    def cancel(self) -> None:
        self.cancelled = True


def test_a_replica_computes_nothing_for_callers_who_left() -> None:
    """Serve itself tells it of the caller of a request, not of those of a call that many share."""
    calls: list[Call] = []

    def remote(*_: Any) -> Call:
        calls.append(Call())
        return calls[-1]

    async def run() -> None:
        found = models(remote)
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(3)]
        for leaving, cancelled in (
            (0, [True, False]),
            (1, [True, False]),
            (2, [True, True]),  # it shared a call with the one before
        ):
            for _ in range(5):
                await asyncio.sleep(0)
            asking[leaving].cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert [call.cancelled for call in calls] == cancelled

    asyncio.run(run())


@pytest.mark.parametrize("heard", [1, 2])
def test_a_stream_that_nobody_hears_to_its_end_is_cancelled(heard: int) -> None:
    call = Call(events=2)
    handle = SimpleNamespace(stream=SimpleNamespace(remote=lambda *_: call))
    found = models(lambda *_: call)
    found._known["mail"].handle.options = lambda **_: handle

    async def run() -> None:
        stream = found.stream("mail", b"x", 9)
        for _ in range(heard):
            await anext(stream)
        await (stream.aclose() if heard == 1 else anext(stream, None))

    asyncio.run(run())
    assert call.cancelled is (heard == 1)


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again() -> None:
    from ray.exceptions import ObjectLostError

    lost = [True]

    async def remote(_: str, requests: list[tuple[bytes, float]]) -> list[Answer]:
        if lost.pop() if lost else False:
            raise ObjectLostError("00", None, "")
        return [Answer(200, body) for body, _ in requests]

    assert asyncio.run(models(remote).ask("mail", b"x", 9)).status == 200
