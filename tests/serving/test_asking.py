"""How the gateway asks models: again when a replica is lost, and no more when the caller left."""

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from support.serve_stand_ins import Exchanges, echo, models, until

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.discovery import TRIES, ServeModels, _Known
from trainyard.serving.transport import Line


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
    assert sorted(calls) == sorted([b"a", b"c"] + [b"deadly"] * TRIES)


def test_time_left_shrinks_with_each_try() -> None:
    from ray.exceptions import RayActorError

    left: list[float] = []

    async def remote(_: str, body: bytes, seconds: float) -> Answer:
        left.append(seconds)
        await asyncio.sleep(0.05)
        if len(left) < TRIES:
            raise RayActorError
        return Answer(200, body)

    began = time.monotonic()
    assert asyncio.run(models(remote).ask("mail", b"x", 9)).status == 200
    took = time.monotonic() - began
    assert len(left) == TRIES
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
    found._known["mail"].handle.options = lambda **_: handle

    async def run() -> None:
        stream = found.stream("mail", b"x", 9)
        for _ in range(heard):
            await anext(stream)
        await (stream.aclose() if heard == 1 else anext(stream, None))

    asyncio.run(run())
    assert call.cancelled is (heard == 1)


def test_a_lost_line_costs_no_request() -> None:
    """Those in work are asked again, by another line while there is one, else through Ray."""

    async def run() -> None:
        replicas = Exchanges()
        places = await replicas.open(2)
        lines = {place: await Line.open(place) for place in places}
        found = models(echo)
        found._known["mail"] = _Known(found._known["mail"].handle, lines)
        replicas.gate.clear()
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(4)]
        await until(lambda: len(replicas.asked) == 4)
        lines[places[0]]._transport.abort()
        await until(lambda: len(replicas.asked) == 6)
        assert replicas.asked[4:] == [1, 1]
        lines[places[1]]._transport.abort()
        assert {answer.body for answer in await asyncio.gather(*asking)} == {b"by Ray: x"}

    asyncio.run(run())
