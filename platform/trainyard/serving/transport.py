"""A direct line from the gateway to a replica: a call through Ray takes as long as a short forward pass.

Messages are msgpack, which carries data and no code: `(call, body, seconds)` asks, `(call,)` takes it
back, `(call, status, body, headers)` answers, `(None,)` says that the replica leaves and takes nothing
more. A line begins with a secret, which the gateway is told
through Ray: nobody else can ask. What Ray's calls do for others is not needed here, see `Host.by_line`.
"""

import asyncio
import itertools
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError

SECRET_BYTES = 32
PATIENCE_SECONDS = 5.0
"""For a line to be opened, and for its secret."""

HOST_LOST_SECONDS = 20
"""A host without power says no goodbye: one that acknowledges nothing for so long is lost, and so is a
process that reads nothing of what fills its buffers."""

KEPT_BYTES = 1_000_000
"""msgpack keeps the memory of its largest message: past this it is let go."""

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
        self._renew()
        self._transport: Any = None

    def _renew(self) -> None:
        from msgpack import Unpacker

        self._unpacker = Unpacker(max_buffer_size=0)  # any size: both ends know their limits
        self._fed = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        plug = transport.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (  # what there is of them: Linux has all
            ("TCP_KEEPIDLE", HOST_LOST_SECONDS // 4),
            ("TCP_KEEPINTVL", HOST_LOST_SECONDS // 4),
            ("TCP_USER_TIMEOUT", HOST_LOST_SECONDS * 1000),
        ):
            if hasattr(socket, option):
                plug.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def data_received(self, data: bytes) -> None:
        self._fed += len(data)
        self._unpacker.feed(data)
        for message in self._unpacker:
            self._heard(*message)
        if self._fed > KEPT_BYTES and self._fed == self._unpacker.tell():
            self._renew()

    def _heard(self, call: int | None, *message: Any) -> None:
        raise NotImplementedError

    def _say(self, *message: Any) -> None:
        from msgpack import packb

        if not self._transport.is_closing():
            self._transport.write(packb(message))


class Line(_Messages):
    """The gateway's end of a line to one replica.

    Attributes:
        open_to_all: whether it takes requests: it does not once the replica is lost or leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open_to_all = True
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
        if not self.open_to_all or self._transport.is_closing():
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
        self.open_to_all, self._hung_up = False, True
        if not self._waiting:
            self._transport.close()

    def _heard(self, call: int | None, *message: Any) -> None:
        if call is None:
            self.open_to_all = False
            return
        status, body, headers = message
        if (answer := self._waiting.get(call)) is not None and not answer.done():
            answer.set_result(Answer(status, body, headers))

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits is told."""
        del error
        self.open_to_all = False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LineError())


class Exchange:
    """The replica's end of all lines to it.

    Attributes:
        callers: the lines that are open, one for each gateway.
        requests: how many came by lines.
    """

    def __init__(self, answer: Callable[[bytes, float], Awaitable[Answer]]) -> None:
        self.answer = answer
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.callers: set[_Caller] = set()
        self.requests = 0
        self._server: Any = None  # uvloop closes one that nobody holds

    async def open(self, host: str) -> Place:
        """Listen at `host` on any port; returns what a gateway needs to ask here.

        Raises:
            OSError: when that is not possible.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Caller(self), host)
        return host, self._server.sockets[0].getsockname()[1], self.secret

    async def leave(self) -> None:
        """Take nothing more; returns when all is answered."""
        if self._server is not None:
            self._server.close()
        for caller in self.callers:
            caller.leave()
        while any(caller.tasks for caller in self.callers):
            await asyncio.sleep(0.02)


class _Caller(_Messages):
    """The replica's end of one line."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._exchange = exchange
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
            self._exchange.callers.add(self)
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._exchange.callers.discard(self)
        for task in self.tasks.values():
            task.cancel()

    def leave(self) -> None:
        self._say(None)

    def _heard(self, call: int | None, *message: Any) -> None:
        assert call is not None
        if message:
            self._exchange.requests += 1
            task = asyncio.get_running_loop().create_task(self._answer(call, *message))
            self.tasks[call] = task
            task.add_done_callback(lambda _: self.tasks.pop(call))
        elif (known := self.tasks.get(call)) is not None:
            known.cancel()

    async def _answer(self, call: int, body: bytes, seconds: float) -> None:
        try:
            answer = await self._exchange.answer(body, seconds)
        except RequestError as error:
            answer = Answer.to(error)
        except Exception:
            log.exception("request failed")
            answer = Answer.to(RequestError("failed", "the server failed on this request"))
        self._say(call, answer.status, answer.body, answer.headers)
