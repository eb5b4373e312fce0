"""Around the whole application: request ids, the access log, bodies in time and size, places."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from trainyard.serving.errors import RequestError

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

access_log = logging.getLogger("ray.serve.trainyard.access")
"""One JSON object per request. A child of Serve's logger, so that it ends up in Serve's files."""


class Shield:
    """ASGI middleware: names each request, logs it, and never lets an exception out.

    What is entered into `request.state.held` is let go once the request is over, however it ends.
    """

    def __init__(self, app: Any, *, tell_id: bool = True) -> None:
        self.app = app
        self._tell_id = tell_id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, or the application's start and end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        status = 0

        async def send_named(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [(b"x-request-id", request_id.encode())] if self._tell_id else []
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        try:
            async with AsyncExitStack() as held:
                state["held"] = held
                await self.app(scope, receive, send_named)
        except asyncio.CancelledError:
            status = status or 499  # the client left; nginx's number for it
            raise
        except Exception:
            access_log.exception("request %s failed", request_id)
            if not status:
                error = RequestError("failed", f"request {request_id} failed; see the log")
                await send_named(
                    {
                        "type": "http.response.start",
                        "status": error.status,
                        "headers": [(b"content-type", b"application/json")],
                    }
                )
                await send({"type": "http.response.body", "body": error.body()})
        finally:
            access_log.info(
                json.dumps(
                    {
                        "id": request_id,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "ms": round(1000 * (time.perf_counter() - began), 2),
                        "key": state.get("key", ""),
                    }
                ),
                extra={"log_to_stderr": False},  # Serve's files have it: as with its own access log
            )


def _request_id(scope: Any) -> str:
    """The caller's own, when it is harmless in a log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return uuid.uuid4().hex


class Unread:
    """Bodies that are still arriving, by the bytes of them that are here.

    A body that drips, or came but for its last byte, holds memory and no place among the requests in
    work. When all of them hold more than `most` bytes, who holds more than an equal share gives way:
    so a small body always gets through, however many large ones do not end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bodies = self._bytes = 0

    @contextmanager
    def one(self) -> Iterator[Callable[[int], None]]:
        """Told of each part of a body, by its size; raises RequestError when there is no room."""
        held = 0

        def arrived(size: int) -> None:
            nonlocal held
            held += size
            self._bytes += size
            if self._bytes > self._most and held > self._most / self._bodies:
                raise RequestError(
                    "overloaded", "too many large bodies arrive at once; try again later", 1
                )

        self._bodies += 1
        try:
            yield arrived
        finally:
            self._bodies -= 1
            self._bytes -= held


class Places:
    """At most so many at once; more are refused, not queued: the queue is the batcher's."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0

    def check(self) -> None:
        """Raises RequestError when there is no place now: a body for nothing need not be read."""
        if self._now >= self._most:
            raise RequestError(
                "overloaded", f"{self._most} requests are in work already; try again later", 1
            )

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place, for as long as a block lasts; raises RequestError when there is none."""
        self.check()
        self._now += 1
        try:
            yield
        finally:
            self._now -= 1


async def read_body(request: Any, most: int, seconds: float, unread: Unread) -> bytes:
    """The whole body of a request.

    Raises:
        RequestError: `too_large` before reading when its length is announced, else as soon as it
            is; `slow_body` when it does not arrive in time; `overloaded` when there is no room for
            more of it; `left` when its sender went away.
    """
    from starlette.requests import ClientDisconnect

    too_large = RequestError(
        "too_large", f"the body is larger than {most} bytes; send fewer or shorter inputs"
    )
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        with unread.one() as arrived:
            async with asyncio.timeout(seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise too_large
                    arrived(len(part))
                    parts.append(part)
    except TimeoutError:
        raise RequestError(
            "slow_body", f"the body did not arrive within {seconds:g} s; send it faster"
        ) from None
    except ClientDisconnect:
        raise RequestError("left", "the caller left before its body was here") from None
    return b"".join(parts)
