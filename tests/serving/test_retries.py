"""How the gateway asks models: once more when a replica is lost, and no more when the client left."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from support.serve_stand_ins import Replicas, echo, models, until

from trainyard.serving import transport
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.discovery import MAX_ATTEMPTS, MAX_DEATHS, ServeModels, _alone
from trainyard.serving.transport import Connection


def test_a_request_that_kills_replicas_takes_nobody_along() -> None:
    from ray.exceptions import RayActorError

    calls: list[bytes] = []

    async def remote(_: str, body: bytes, __: float) -> Answer:
        calls.append(body)
        await asyncio.sleep(0)
        if body == b"deadly":
            raise RayActorError
        return Answer(200, body)

    async def run() -> list[Any]:
        asking = (found.ask("mail", body, 9) for body in (b"a", b"deadly", b"c"))
        return await asyncio.gather(*asking, return_exceptions=True)

    found = models(remote)
    first, deadly, last = asyncio.run(run())
    assert (first.status, last.status) == (200, 200)
    assert (deadly.status, str(deadly)) == (503, "model 'mail' cannot answer now; try again")
    assert sorted(calls) == sorted([b"a", b"c"] + [b"deadly"] * MAX_DEATHS)


def test_time_left_shrinks_with_each_try() -> None:
    from ray.exceptions import RayActorError

    left: list[float] = []

    async def remote(_: str, body: bytes, seconds: float) -> Answer:
        left.append(seconds)
        await asyncio.sleep(0.05)
        if len(left) < MAX_DEATHS:
            raise RayActorError
        return Answer(200, body)

    began = time.monotonic()
    assert asyncio.run(models(remote).ask("mail", b"x", 9)).status == 200
    took = time.monotonic() - began
    assert len(left) == MAX_DEATHS
    assert all(9 - took <= seconds <= 9 - 0.05 * n for n, seconds in enumerate(left))


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again() -> None:
    from ray.exceptions import ObjectLostError

    lost = [True]

    async def remote(_: str, body: bytes, __: float) -> Answer:
        if lost.pop() if lost else False:
            raise ObjectLostError("00", None, "")
        return Answer(200, body)

    assert asyncio.run(models(remote).ask("mail", b"x", 9)).status == 200


def test_a_model_that_went_meanwhile_is_not_found() -> None:
    with pytest.raises(RequestError, match="no model named"):
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
    """Serve itself would not tell it."""
    calls: list[Call] = []

    def remote(*_: Any) -> Call:
        calls.append(Call())
        return calls[-1]

    async def run() -> None:
        found = models(remote)
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        asking[0].cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert [call.cancelled for call in calls] == [True, False]
        asking[1].cancel()

    asyncio.run(run())


@pytest.mark.parametrize("heard", [1, 2])
def test_a_stream_that_nobody_hears_to_its_end_is_cancelled(heard: int) -> None:
    call = Call(events=2)
    handle = SimpleNamespace(stream=SimpleNamespace(remote=lambda *_: call))
    found = models(lambda *_: call)
    found._models["mail"].handle.options = lambda **_: handle

    async def run() -> None:
        stream = found.stream("mail", b"x", 9)
        for _ in range(heard):
            await anext(stream)
        await (stream.aclose() if heard == 1 else anext(stream, None))

    asyncio.run(run())
    assert call.cancelled is (heard == 1)


def test_a_lost_connection_costs_no_request() -> None:
    """Requests in flight are sent again, to another replica while there is one, else through Ray."""

    async def run(lost: int) -> None:
        replicas = Replicas()
        addresses = await replicas.open(2)
        connections = [await Connection.open(address) for address in addresses]
        found = models(echo)
        found._models["mail"].connections = dict(zip(addresses, connections, strict=True))
        replicas.gate.clear()
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(4)]
        await until(lambda: len(replicas.asked) == 4)
        for connection in connections[:lost]:
            connection._transport.abort()
        if lost == 1:
            await until(lambda: len(replicas.asked) == 5)  # one at a time is sent again
            await asyncio.sleep(0.05)
            assert replicas.asked[4:] == [1]
            replicas.gate.set()
        bodies = {answer.body for answer in await asyncio.gather(*asking)}
        assert bodies == {b"by connection: x" if lost == 1 else b"by Ray: x"}

    asyncio.run(run(1))
    asyncio.run(run(2))


def test_a_request_that_kills_replicas_takes_none_along_that_was_sent_with_it() -> None:
    """Of four replicas it kills two; what was in flight on both is answered."""

    async def run() -> None:
        replicas = Replicas(seconds=0.05)
        addresses = await replicas.open(4)
        connections = {address: await Connection.open(address) for address in addresses}
        found = models(echo)
        found._models["mail"].connections = connections
        deadly = replicas.kill_on(b"deadly")
        asking = [
            asyncio.ensure_future(found.ask("mail", body, 9)) for body in [b"deadly", *[b"x"] * 40]
        ]
        first, *others = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(first, RequestError)
        assert first.status == 503
        assert len(deadly) == MAX_DEATHS
        assert all(isinstance(answer, Answer) and answer.status == 200 for answer in others)

    asyncio.run(run())


def test_requests_that_were_never_sent_are_sent_as_often_as_it_takes() -> None:
    async def run() -> None:
        replicas = Replicas()
        addresses = await replicas.open(3)
        connections = {address: await Connection.open(address) for address in addresses}
        found = models(echo)
        found._models["mail"].connections = connections
        for connection in connections.values():
            connection._transport.abort()  # and nothing has told the gateway yet
        assert (await found.ask("mail", b"x", 9)).body == b"by Ray: x"

    asyncio.run(run())


def test_a_sick_replica_does_not_attract_the_traffic() -> None:
    """It answers 500 at once, so it has the fewest requests in flight; before, it got 76 of 100."""

    async def run(sick: set[int]) -> Counter[int]:
        replicas = Replicas(seconds=0.005, sick=sick)
        addresses = await replicas.open(4)
        connections = {address: await Connection.open(address) for address in addresses}
        found = models(echo)
        found._models["mail"].connections = connections

        async def client() -> None:
            for _ in range(50):
                await found.ask("mail", b"x", 9)

        await asyncio.gather(*(client() for _ in range(8)))
        return Counter(replicas.asked)

    found = asyncio.run(run({0}))
    assert found[0] < 20, found
    healthy = asyncio.run(run(set()))
    assert min(healthy.values()) > 60, healthy


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_replica_that_hangs_does_not_get_its_share(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between requests all replicas have none in flight; each request to the hung one is lost.

    Timers of uvloop, which Ray uses, may fire a little early.
    """
    monkeypatch.setattr(transport, "COUNTED_SECONDS", 0.04)

    async def run() -> Counter[str]:
        working, hung = Replicas(), Replicas()
        hung.gate.clear()
        addresses = [*await working.open(3), *await hung.open(1)]
        found = models(echo)
        found._models["mail"].connections = {
            address: await Connection.open(address) for address in addresses
        }
        outcomes = Counter[str]()
        for _ in range(40):
            try:
                async with asyncio.timeout(0.05):
                    await found.ask("mail", b"x", 0.05)
            except TimeoutError:
                outcomes["lost"] += 1
            else:
                outcomes["answered"] += 1
        return outcomes

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(run())["lost"] <= 3


def test_clients_with_little_patience_do_not_make_a_replica_look_sick() -> None:
    """Nor does an answer that it is being replaced."""

    async def run() -> None:
        slow = Replicas(seconds=0.2)
        (address,) = await slow.open(1)
        connection = await Connection.open(address)
        for _ in range(5):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await connection.ask(b"x", 0.01)
        assert connection.load == 0
        connection._receive(0, 503, b"{}", {})
        assert connection.load == 0
        connection.close()

    asyncio.run(run())


def test_a_stream_is_begun_again_when_its_replica_dies_before_the_first_event() -> None:
    from ray.exceptions import RayActorError

    calls: list[int] = []

    async def events(*_: Any) -> AsyncIterator[bytes]:
        calls.append(len(calls))
        if len(calls) == 1:
            raise RayActorError
        yield b"event"
        if len(calls) == 2:
            raise RayActorError

    handle = SimpleNamespace(stream=SimpleNamespace(remote=events))
    found = models(lambda *_: None)
    found._models["mail"].handle.options = lambda **_: handle

    async def run() -> None:
        stream = found.stream("mail", b"x", 9)
        assert await anext(stream) == b"event"
        with pytest.raises(RequestError, match="cannot answer now"):  # it was sent already
            await anext(stream)
        assert calls == [0, 1]

    asyncio.run(run())


def test_a_stream_is_not_begun_again_for_ever() -> None:
    """Each time it has the seconds that are left."""
    from ray.serve.exceptions import ReplicaUnavailableError

    left: list[float] = []

    async def events(name: str, body: bytes, seconds: float) -> AsyncIterator[bytes]:
        left.append(seconds)
        await asyncio.sleep(0.01)
        raise ReplicaUnavailableError("replica-1")
        yield body, name

    handle = SimpleNamespace(stream=SimpleNamespace(remote=events))
    found = models(lambda *_: None)
    found._models["mail"].handle.options = lambda **_: handle

    async def run() -> None:
        with pytest.raises(RequestError, match="cannot answer now"):
            await anext(found.stream("mail", b"x", 9))

    asyncio.run(run())
    assert len(left) == MAX_ATTEMPTS
    assert sorted(left, reverse=True) == left
    assert left[-1] < 9 - 0.03


def test_a_request_does_not_wait_long_for_the_others_of_a_lost_replica() -> None:
    """Sixteen long generations in flight at a death would not all be answered in turns."""

    async def waits() -> tuple[float, bool]:
        lock = asyncio.Lock()
        clock = asyncio.get_running_loop().time
        async with _alone(lock, 5):
            began = clock()
            async with _alone(lock, 0.05):
                waited = clock() - began
        return waited, lock.locked()

    waited, locked = asyncio.run(waits())
    assert 0.04 < waited < 2
    assert not locked
