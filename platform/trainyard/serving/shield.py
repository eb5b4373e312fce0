"""Around the whole application: request ids, the access log, bodies in time and in size."""

import asyncio
import json
import logging
import re
import time
import uuid
from typing import Any

from trainyard.serving.failures import RequestError

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

access_log = logging.getLogger("ray.serve.trainyard.access")
"""One JSON object per request. A child of Serve's logger, so that it ends up in Serve's files."""


class Shield:
    """ASGI middleware: names each request, logs it, and never lets an exception out."""

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
                )
            )


def _request_id(scope: Any) -> str:
    """The caller's own, when it is harmless in a log, else a new one."""
    for name, value in scope["headers"]:
        given: str = value.decode("latin-1")
        if name == b"x-request-id" and REQUEST_ID.fullmatch(given):
            return given
    return uuid.uuid4().hex


async def read_body(request: Any, most: int, seconds: float) -> bytes:
    """The whole body of a request.

    Raises:
        RequestError: `too_large` before reading when its length is announced, else as soon as it
            is; `slow_body` when it does not arrive in time.
    """
    too_large = RequestError(
        "too_large", f"the body is larger than {most} bytes; send fewer or shorter inputs"
    )
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            "slow_body", f"the body did not arrive within {seconds:g} s; send it faster"
        ) from None
    return b"".join(parts)
