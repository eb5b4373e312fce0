"""A direct line from the gateway to a replica: a call through Ray takes as long as a short forward pass.

Messages are msgpack, which carries data and no code: `(call, body, seconds)` asks, `(call,)` takes it
back, `(call, status, body, headers)` answers. A line begins with a secret, which the gateway is told
through Ray: nobody else can ask. What Ray's calls do for others is not needed here, see `Host.by_line`.
"""

import asyncio
import itertools
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from trainyard.serving.failures import RequestError
from trainyard.serving.gateway import Answer

SECRET_BYTES = 32
PATIENCE_SECONDS = 5.0
"""For a line to be opened, and for its secret."""

HOST_LOST_MS = 10_000
"""A host without power says no goodbye: what it does not acknowledge for so long is lost with it."""

Place = tuple[str, int, bytes]
"""Host, port and secret of a replica's end."""

log = logging.getLogger("ray.serve.trainyard")


@dataclass(frozen=True)
class Offer:
    """What a replica says of itself: its models, and its end of a line, if they are asked by one."""

    names: tuple[str, ...]
    place: Place | None = None


class LineError(Exception):
    """The replica is gone, or its host: it may have computed the answer, or not."""


class _Messages(asyncio.Protocol):
    """Either end: whole messages, in the order in which they were sent."""

    def __init__(self) -> None:
        from msgpack import Unpacker

        self._unpacker = Unpacker(max_buffer_size=0)  # any size: both ends know their limits
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            plug = transport.get_extra_info("socket")
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, HOST_LOST_MS)

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for message in self._unpacker:
            self._heard(*message)

    def _heard(self, call: int, *message: Any) -> None:
        raise NotImplementedError

    def _say(self, *message: Any) -> None:
        from msgpack import packb

        if not self._transport.is_closing():
            self._transport.write(packb(message))


class Line(_Messages):
    """The gateway's end of a line to one replica."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = True
        self._calls = itertools.count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._hung_up = False

    @classmethod
    async def open(cls, place: Place) -> Self:
        """A line to a replica.

        Raises:
            OSError: when there is no way to it (TimeoutError is one).
        """
        host, port, secret = place
        async with asyncio.timeout(PATIENCE_SECONDS):
            loop = asyncio.get_running_loop()
            transport, line = await loop.create_connection(cls, host, port)
        transport.write(secret)
        return line

    @property
    def busy(self) -> int:
        """Requests that wait for their answers."""
        return len(self._waiting)

    async def ask(self, body: bytes, seconds: float) -> Answer:
        """The answer to a request's body, wanted within `seconds`. Who leaves takes the request back.

        Raises:
            LineError: when the replica is gone.
        """
        if not self.alive:
            raise LineError
        call = next(self._calls)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[call] = answer
        self._say(call, body, seconds)
        try:
            return await answer
        except asyncio.CancelledError:
            self._say(call)
            raise
        finally:
            self._waiting.pop(call, None)
            if self._hung_up and not self._waiting:
                self._transport.close()

    def hang_up(self) -> None:
        """Ask nothing more; what waits is still answered."""
        self._hung_up = True
        if not self._waiting:
            self._transport.close()

    def _heard(self, call: int, *message: Any) -> None:
        status, body, headers = message
        if (answer := self._waiting.get(call)) is not None and not answer.done():
            answer.set_result(Answer(status, body, headers))

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits is told."""
        del error
        self.alive = False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LineError())


class Exchange:
    """The replica's end of all lines to it.

    Attributes:
        lines: how many gateways are connected.
    """

    def __init__(self, answer: Callable[[bytes, float], Awaitable[Answer]]) -> None:
        self.answer = answer
        self.lines = 0
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._server: Any = None  # uvloop closes one that nobody holds

    async def open(self, host: str) -> Place:
        """Listen at `host` on any port; returns what a gateway needs to ask here."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Caller(self), host)
        return host, self._server.sockets[0].getsockname()[1], self.secret


class _Caller(_Messages):
    """The replica's end of one line."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._said: bytes | None = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._end_if_unknown)

    def _end_if_unknown(self) -> None:
        if self._said is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._said is not None:
            self._said += data
            if len(self._said) < SECRET_BYTES:
                return
            data = self._said[SECRET_BYTES:]
            if not secrets.compare_digest(self._said[:SECRET_BYTES], self._exchange.secret):
                self._transport.abort()
                return
            self._said = None
            self._exchange.lines += 1
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._exchange.lines -= self._said is None
        for task in self._tasks.values():
            task.cancel()

    def _heard(self, call: int, *message: Any) -> None:
        if message:
            work = self._answer(call, *message)
            self._tasks[call] = asyncio.get_running_loop().create_task(work)
        elif (task := self._tasks.get(call)) is not None:
            task.cancel()

    async def _answer(self, call: int, body: bytes, seconds: float) -> None:
        with suppress(asyncio.CancelledError):  # its caller left
            try:
                answer = await self._exchange.answer(body, seconds)
            except RequestError as error:
                answer = Answer.to(error)
            except Exception:
                log.exception("request failed")
                answer = Answer.to(RequestError("failed", "the server failed on this request"))
            self._say(call, answer.status, answer.body, answer.headers)
        del self._tasks[call]
