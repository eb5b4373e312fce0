"""The TCP connection between a gateway and a replica.

A call through Ray would take as long as a short forward pass.
Messages are msgpack, which carries data and no code: `(call, body, seconds)` is a request, `(call,)`
cancels it, `(call, status, body, headers)` is the answer, `(None,)` announces that the replica takes no
more requests. A connection begins with a secret that the gateway receives through Ray. Calls that need
more than that, such as streams, go through Ray: see `Host.uses_connections`.
"""

import asyncio
import itertools
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from msgpack import Unpacker, packb

from trainyard.serving.answer import Answer
from trainyard.serving.errors import STATUSES, RequestError

SECRET_BYTES = 32

OPEN_SECONDS = 5.0
"""Seconds to open a connection, and to send its secret."""

HOST_LOST_SECONDS = 20
"""Seconds without an acknowledgment after which a host counts as lost: one without power sends no FIN."""

KEPT_BYTES = 1_000_000
"""Bytes. msgpack keeps the memory of its largest message; beyond this, the unpacker is replaced."""

FAILURE_PENALTY = 16.0
"""Requests in flight that one failed answer counts like, when a replica is chosen."""

PENALTY_HALF_LIFE = 10.0
"""Seconds in which the penalty halves, so that a replica that recovers gets requests again."""

Address = tuple[str, int, bytes]
"""Host, port and secret of a replica."""

log = logging.getLogger("ray.serve.trainyard")


@dataclass(frozen=True)
class ReplicaInfo:
    """Models of a replica, and its address when it takes connections."""

    names: tuple[str, ...]
    address: Address | None = None


class ConnectionLost(Exception):  # noqa: N818  # the replica's state, which is no error of this process
    """The replica or its host is gone.

    Attributes:
        in_work: True when the request was sent: the replica may have computed it.
    """

    def __init__(self, *, in_work: bool) -> None:
        super().__init__("the connection to a replica was lost")
        self.in_work = in_work


class _MessageProtocol(asyncio.Protocol):
    """Either end of a connection: whole messages, in order."""

    def __init__(self) -> None:
        self._renew_unpacker()
        self._transport: Any = None  # of asyncio or uvloop, which share no class

    def _renew_unpacker(self) -> None:
        self._unpacker = Unpacker(max_buffer_size=0)  # any size: both ends know their limits
        self._fed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (  # Linux has all of them
            ("TCP_KEEPIDLE", HOST_LOST_SECONDS // 4),
            ("TCP_KEEPINTVL", HOST_LOST_SECONDS // 4),
            ("TCP_USER_TIMEOUT", HOST_LOST_SECONDS * 1000),
        ):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def data_received(self, data: bytes) -> None:
        self._fed += len(data)
        self._unpacker.feed(data)
        for message in self._unpacker:
            self._receive(*message)
        if self._fed > KEPT_BYTES and self._fed == self._unpacker.tell():
            self._renew_unpacker()

    def _receive(self, call: int | None, *message: Any) -> None:
        raise NotImplementedError

    def _send(self, *message: Any) -> None:
        if not self._transport.is_closing():
            self._transport.write(packb(message))


class Connection(_MessageProtocol):
    """The gateway's end of a connection to one replica.

    Attributes:
        usable: False once the replica is lost or leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.usable = True
        self._calls = itertools.count()
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._closing = False
        self._penalty, self._penalty_at = 0.0, 0.0

    @classmethod
    async def open(cls, address: Address) -> Self:
        host, port, secret = address
        async with asyncio.timeout(OPEN_SECONDS):
            loop = asyncio.get_running_loop()
            transport, connection = await loop.create_connection(cls, host, port)
        transport.write(secret)
        return connection

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    @property
    def load(self) -> float:
        """Requests in flight, plus the penalty of recent failures.

        A replica on a broken device answers 500 at once and never has requests in flight. Without a
        penalty it would get nearly all of them.
        """
        return len(self._pending) + self._current_penalty()

    def _current_penalty(self) -> float:
        if not self._penalty:
            return 0.0
        age = time.monotonic() - self._penalty_at
        return float(self._penalty * 0.5 ** (age / PENALTY_HALF_LIFE))

    def _count(self, status: int) -> None:
        failed = status == STATUSES["failed"][0]
        if failed or self._penalty:
            now = self._current_penalty()
            self._penalty = now + FAILURE_PENALTY if failed else now / 2
            self._penalty_at = time.monotonic()

    async def ask(self, body: bytes, seconds: float) -> Answer:
        """Send a request's body, to be answered within `seconds`. Cancellation cancels the request."""
        if not self.usable or self._transport.is_closing():
            raise ConnectionLost(in_work=False)
        call = next(self._calls)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[call] = answer
        self._send(call, body, seconds)
        try:
            return await answer
        except asyncio.CancelledError:
            self._send(call)
            raise
        finally:
            self._pending.pop(call, None)
            if self._closing and not self._pending:
                self._transport.close()

    def close(self) -> None:
        """Send no more requests; pending ones are still answered."""
        self.usable, self._closing = False, True
        if not self._pending:
            self._transport.close()

    def _receive(self, call: int | None, *message: Any) -> None:
        if call is None:
            self.usable = False
            return
        status, body, headers = message
        self._count(status)
        if (answer := self._pending.get(call)) is not None and not answer.done():
            answer.set_result(Answer(status, body, headers))

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.usable = False
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ConnectionLost(in_work=True))


class ConnectionServer:
    """The replica's end of all its connections.

    Attributes:
        connections: open connections, one for each gateway.
        requests: number of requests received.
    """

    def __init__(self, answer: Callable[[bytes, float], Awaitable[Answer]]) -> None:
        self.answer = answer
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.connections: set[_ServerConnection] = set()
        self.requests = 0
        self._server: Any = None  # uvloop closes one without a reference

    async def open(self, host: str) -> Address:
        """Listen at `host` on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _ServerConnection(self), host)
        return host, self._server.sockets[0].getsockname()[1], self.secret

    async def close(self) -> None:
        """Take no more requests; return when all are answered."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.announce_end()
        while any(connection.tasks for connection in self.connections):
            await asyncio.sleep(0.02)


class _ServerConnection(_MessageProtocol):
    def __init__(self, server: ConnectionServer) -> None:
        super().__init__()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._server = server
        self._unverified: bytes | None = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(OPEN_SECONDS, self._abort_if_unverified)

    def _abort_if_unverified(self) -> None:
        if self._unverified is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._unverified is not None:
            self._unverified += data
            if len(self._unverified) < SECRET_BYTES:
                return
            data = self._unverified[SECRET_BYTES:]
            if not secrets.compare_digest(self._unverified[:SECRET_BYTES], self._server.secret):
                self._transport.abort()
                return
            self._unverified = None
            self._server.connections.add(self)
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._server.connections.discard(self)
        for task in self.tasks.values():
            task.cancel()

    def announce_end(self) -> None:
        self._send(None)

    def _receive(self, call: int | None, *message: Any) -> None:
        assert call is not None
        if message:
            self._server.requests += 1
            task = asyncio.get_running_loop().create_task(self._answer(call, *message))
            self.tasks[call] = task
            task.add_done_callback(lambda _: self.tasks.pop(call))
        elif (running := self.tasks.get(call)) is not None:
            running.cancel()

    async def _answer(self, call: int, body: bytes, seconds: float) -> None:
        try:
            answer = await self._server.answer(body, seconds)
        except RequestError as error:
            answer = Answer.from_error(error)
        except Exception:
            log.exception("request failed")
            answer = Answer.from_error(RequestError("failed", "the server failed on this request"))
        self._send(call, answer.status, answer.body, answer.headers)
