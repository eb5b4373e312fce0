"""TCP connection between a gateway and a replica.

A call through Ray would take about as long as a short forward pass. Messages are msgpack, which
carries data and no code:

    (call, body, seconds)          request, to be answered within `seconds`
    (call,)                        cancellation of a request
    (call, status, body, headers)  answer to a request
    (None,)                        announcement that the replica takes no more requests

A connection begins with a secret that the gateway received through Ray. Streams and other calls go
through Ray, see `Host.uses_connections`.
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
"""Bytes of the secret that opens a connection."""

OPEN_SECONDS = 5.0
"""Maximum seconds to open a connection, and to send its secret."""

HOST_LOST_SECONDS = 20
"""Seconds without an acknowledgment after which a host counts as lost. A host without power sends
no FIN."""

KEPT_BYTES = 1_000_000
"""Bytes fed to an unpacker after which it is replaced, because msgpack keeps the memory of its
largest message."""

FAILURE_PENALTY = 16.0
"""Load that one failed answer adds to a connection, in requests in flight."""

PENALTY_HALF_LIFE = 10.0
"""Seconds in which the penalty halves, so that a recovered replica gets requests again."""

FAILED, LATE = (STATUSES[kind][0] for kind in ("failed", "late"))

COUNTED_SECONDS = 5.0
"""Minimum time limit, in seconds, of a request whose expiry counts as a failure. Clients may choose
shorter limits."""

EARLY_SECONDS = 0.05
"""Seconds by which a timer of the event loop may fire early."""

Address = tuple[str, int, bytes]
"""Host, port and secret of a replica."""

log = logging.getLogger("ray.serve.trainyard")


@dataclass(frozen=True)
class ReplicaInfo:
    """Names of a replica's models, and its address; None if it takes no connections."""

    names: tuple[str, ...]
    address: Address | None = None


class ConnectionLost(Exception):  # noqa: N818  # a state of the replica, not an error of this process
    """Error for a connection whose replica or host is gone.

    Attributes:
        in_work: True if the request was sent, so the replica may have computed it.
    """

    def __init__(self, *, in_work: bool) -> None:
        super().__init__("the connection to a replica was lost")
        self.in_work = in_work


class _MessageProtocol(asyncio.Protocol):
    """Base of both ends of a connection; delivers whole messages in order."""

    def __init__(self) -> None:
        self._renew_unpacker()
        self._transport: Any = None  # of asyncio or uvloop, which have no common class

    def _renew_unpacker(self) -> None:
        self._unpacker = Unpacker(max_buffer_size=0)  # no size limit: the gateway limits bodies
        self._fed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (  # all exist on Linux only
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
    """Gateway's end of a connection to one replica.

    Attributes:
        usable: False once the replica is lost or takes no more requests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.usable = True
        self._calls = itertools.count()
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._closing = False
        self._penalty, self._penalty_at, self._answered_at = 0.0, 0.0, 0.0

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
        """Requests in flight, plus a penalty for recent failures.

        A replica on a broken device answers 500 at once, so it has hardly any requests in flight.
        Without the penalty it would get nearly all requests. One that hangs lets each request run
        to its deadline, so a deadline counts as well, unless other answers came meanwhile.
        """
        return len(self._pending) + self._current_penalty()

    def _current_penalty(self) -> float:
        if not self._penalty:
            return 0.0
        age = time.monotonic() - self._penalty_at
        return float(self._penalty * 0.5 ** (age / PENALTY_HALF_LIFE))

    def _hangs(self, sent: float, seconds: float) -> bool:
        """Return whether a request ran to its time limit, and no other was answered meanwhile."""
        ran_out = time.monotonic() >= sent + seconds - EARLY_SECONDS
        return ran_out and seconds >= COUNTED_SECONDS and self._answered_at < sent

    def _count(self, *, failed: bool) -> None:
        if failed or self._penalty:
            now = self._current_penalty()
            self._penalty = now + FAILURE_PENALTY if failed else now / 2
            self._penalty_at = time.monotonic()

    async def ask(self, body: bytes, seconds: float) -> Answer:
        """Send a request's body and return its answer; cancellation also reaches the replica.

        Args:
            body: JSON of the request.
            seconds: Maximum seconds in which the replica must answer.

        Raises:
            ConnectionLost: The replica or its host is gone.
        """
        if not self.usable or self._transport.is_closing():
            raise ConnectionLost(in_work=False)
        call, sent = next(self._calls), time.monotonic()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[call] = answer
        self._send(call, body, seconds)
        try:
            found = await answer
            hung = found.status == LATE and self._hangs(sent, seconds)
            self._count(failed=found.status == FAILED or hung)
            if found.status not in (FAILED, LATE):
                self._answered_at = time.monotonic()
            return found
        except asyncio.CancelledError:
            self._send(call)
            if self._hangs(sent, seconds):  # else the client left
                self._count(failed=True)
            raise
        finally:
            self._pending.pop(call, None)
            if self._closing and not self._pending:
                self._transport.close()

    def close(self) -> None:
        """Send no more requests; close the connection after the last pending answer."""
        self.usable, self._closing = False, True
        if not self._pending:
            self._transport.close()

    def _receive(self, call: int | None, *message: Any) -> None:
        if call is None:
            self.usable = False
            return
        status, body, headers = message
        if (answer := self._pending.get(call)) is not None and not answer.done():
            answer.set_result(Answer(status, body, headers))

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.usable = False
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ConnectionLost(in_work=True))


class ConnectionServer:
    """Server for the connections of all gateways to one replica.

    Attributes:
        connections: Open connections, one per gateway replica.
        requests: Number of requests received.
    """

    def __init__(self, answer: Callable[[bytes, float], Awaitable[Answer]]) -> None:
        self.answer = answer
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.connections: set[_ServerConnection] = set()
        self.requests = 0
        self._server: Any = None  # uvloop closes a server without a reference

    async def open(self, host: str) -> Address:
        """Listen at `host` on a free port; return the replica's address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _ServerConnection(self), host)
        return host, self._server.sockets[0].getsockname()[1], self.secret

    async def close(self) -> None:
        """Take no more requests; return when all received requests are answered."""
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
