"""Connections between gateway and replica: who is answered, who may ask, who leaves, and what dies."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from msgpack import packb
from support.serve_stand_ins import HOST, until

from trainyard.serving import transport as transport_module
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.transport import Address, Connection, ConnectionLost, ConnectionServer


class Replica:
    """Echoes a body; `slow` ones only once the gate is open."""

    server: ConnectionServer

    def __init__(self) -> None:
        self.cancelled: list[bytes] = []
        self.seconds: list[float] = []
        self.gate = asyncio.Event()

    async def answer(self, body: bytes, seconds: float) -> Answer:
        self.seconds.append(seconds)
        try:
            if body.startswith(b"slow"):
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(body)
            raise
        if body == b"refused":
            raise RequestError("overloaded", "too much", 3)
        if body == b"defect":
            raise KeyError(body)
        return Answer(200, body, {"x": "y"})


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[Replica, Connection, Address]]:
    """A replica, a connection to it, and what it takes to open another."""
    replica = Replica()
    server = replica.server = ConnectionServer(replica.answer)
    address = await server.open(HOST)
    connection = await Connection.open(address)
    async with asyncio.timeout(20):
        yield replica, connection, address
    connection.close()
    server._server.close()


def run(test: Callable[[Replica, Connection, Address], Coroutine[Any, Any, None]]) -> None:
    """By both event loops: Serve's replicas have uvloop."""

    async def go() -> None:
        async with connected() as parts:
            await test(*parts)

    asyncio.run(go())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go())


def test_each_caller_gets_its_own_answer_in_any_order_and_size() -> None:
    async def test(replica: Replica, connection: Connection, _: Address) -> None:
        slow = asyncio.ensure_future(connection.ask(b"slow", 7.5))
        bodies = [b"", *(bytes([i]) * 10**size for i, size in enumerate((1, 3, 5, 7)))]
        answers = await asyncio.gather(*(connection.ask(body, 9) for body in bodies))
        assert [answer.body for answer in answers] == bodies
        assert connection.in_flight == 1
        assert not slow.done()
        replica.gate.set()
        assert await slow == Answer(200, b"slow", {"x": "y"})
        assert connection.in_flight == 0
        assert replica.seconds[0] == 7.5

    run(test)


def test_failures_are_answers() -> None:
    async def test(_: Replica, connection: Connection, __: Address) -> None:
        refused = await connection.ask(b"refused", 9)
        assert (refused.status, refused.headers["retry-after"]) == (429, "3")
        assert b"too much" in refused.body
        assert (await connection.ask(b"defect", 9)).status == 500
        assert (await connection.ask(b"fine", 9)).status == 200

    run(test)


def test_who_leaves_takes_the_request_back_and_nobody_along() -> None:
    async def test(replica: Replica, connection: Connection, _: Address) -> None:
        asking = [asyncio.ensure_future(connection.ask(b"slow %d" % i, 9)) for i in range(3)]
        await until(lambda: len(replica.seconds) == 3)
        asking[1].cancel()
        await until(lambda: replica.cancelled == [b"slow 1"])
        replica.gate.set()
        assert [(await asking[i]).body for i in (0, 2)] == [b"slow 0", b"slow 2"]

    run(test)


def test_a_lost_gateway_leaves_no_work_behind() -> None:
    async def test(replica: Replica, connection: Connection, _: Address) -> None:
        asking = asyncio.ensure_future(connection.ask(b"slow", 9))
        await until(lambda: len(replica.seconds) == 1)
        assert len(replica.server.connections) == 1
        connection._transport.abort()
        await until(lambda: replica.cancelled == [b"slow"])
        assert len(replica.server.connections) == 0
        with pytest.raises(ConnectionLost):
            await asking

    run(test)


def test_a_lost_replica_is_told_to_all_who_wait_and_to_who_comes() -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(200)
        writer.transport.abort()

    async def go() -> None:
        server = await asyncio.start_server(die, HOST)
        connection = await Connection.open((HOST, server.sockets[0].getsockname()[1], b"s" * 32))
        asking = [connection.ask(b"x" * 100, 9) for _ in range(3)]
        async with asyncio.timeout(5):
            found = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(error) for error in found] == [ConnectionLost] * 3
        assert (connection.usable, connection.in_flight) == (False, 0)
        with pytest.raises(ConnectionLost):
            await connection.ask(b"fine", 9)
        server.close()

    asyncio.run(go())


def test_after_hanging_up_what_waits_is_answered() -> None:
    async def test(replica: Replica, connection: Connection, _: Address) -> None:
        asking = asyncio.ensure_future(connection.ask(b"slow", 9))
        await until(lambda: len(replica.seconds) == 1)
        connection.close()
        replica.gate.set()
        assert (await asking).body == b"slow"
        await until(lambda: not connection.usable)

    run(test)


def test_a_replica_that_leaves_answers_what_it_has_and_takes_nothing_more() -> None:
    async def test(replica: Replica, connection: Connection, address: Address) -> None:
        asking = asyncio.ensure_future(connection.ask(b"slow", 9))
        await until(lambda: len(replica.seconds) == 1)
        leaving = asyncio.ensure_future(replica.server.close())
        await until(lambda: not connection.usable)
        with pytest.raises(ConnectionLost):
            await connection.ask(b"fine", 9)
        with pytest.raises(ConnectionRefusedError):
            await Connection.open(address)
        assert not leaving.done()
        replica.gate.set()
        assert (await asking).body == b"slow"
        await leaving

    run(test)


def test_nothing_is_kept_of_a_request_that_was_taken_back_at_once() -> None:
    async def test(replica: Replica, _: Connection, address: Address) -> None:
        writer = (await asyncio.open_connection(*address[:2]))[1]
        both = b"".join(packb((call, b"slow", 9)) + packb((call,)) for call in range(50))
        writer.write(address[2] + both)
        await until(lambda: replica.server.requests == 50)
        await until(lambda: not any(caller.tasks for caller in replica.server.connections))
        writer.close()

    run(test)


def test_a_large_answer_leaves_its_memory_behind() -> None:
    async def test(_: Replica, connection: Connection, __: Address) -> None:
        before = connection._unpacker
        for size in (10, 3_000_000, 10):
            assert len((await connection.ask(b"x" * size, 9)).body) == size
        assert connection._unpacker is not before
        assert connection._fed < 100

    run(test)


@pytest.mark.parametrize("said", [b"x" * 32, b"x" * 31 + b"y" * 500, packb((0, b"fine", 9)) * 9])
def test_a_stranger_is_not_answered(said: bytes) -> None:
    async def test(replica: Replica, _: Connection, address: Address) -> None:
        reader, writer = await asyncio.open_connection(*address[:2])
        writer.write(said + packb((0, b"fine", 9)))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert replica.seconds == []

    run(test)


def test_a_stranger_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "OPEN_SECONDS", 0.2)

    async def test(_: Replica, connection: Connection, address: Address) -> None:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*address[:2])
        writer.write(address[2][:-1])
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert 0.1 < time.monotonic() - began < 5
        writer.close()
        assert (await connection.ask(b"fine", 9)).status == 200  # who did say it stays

    run(test)


def test_a_secret_may_come_in_pieces() -> None:
    async def test(_: Replica, __: Connection, address: Address) -> None:
        reader, writer = await asyncio.open_connection(*address[:2])
        message = address[2] + packb((7, b"fine", 9))
        for part in (message[:5], message[5:34], message[34:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        assert await reader.read(100) == packb((7, 200, b"fine", {"x": "y"}))
        writer.close()

    run(test)
