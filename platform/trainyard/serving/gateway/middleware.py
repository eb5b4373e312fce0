"""Middleware of the gateway: request ids, access log, responses to exceptions, source checks."""

import asyncio
import json
import logging
import re
import time
import uuid
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainyard.serving.errors import RequestError
from trainyard.serving.options import LOOPBACK, GatewayOptions

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Request ids that are safe in a log."""

HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^:@,/\[\]\s]*))(:[0-9]*)?")
"""Value of the header Host: a name or a bracketed IPv6 address, and a port."""

access_log = logging.getLogger("ray.serve.trainyard.access")
"""Logger of one JSON object per request. As a child of Serve's logger, it writes to Serve's
files."""


class RequestMiddleware:
    """ASGI middleware: give each request an id, log it, and turn exceptions into responses.

    Context managers entered into `request.state.held` exit when the request ends, also after an
    error or a cancellation.

    Args:
        app: Application to wrap.
        send_id: True to send the id to the client as the header x-request-id.
    """

    def __init__(self, app: ASGIApp, *, send_id: bool = True) -> None:
        self.app = app
        self._send_id = send_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id.encode())] if self._send_id else []
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            async with AsyncExitStack() as held:
                state["held"] = held
                await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            status = status or 499  # the client disconnected
            raise
        except Exception:
            access_log.exception("request %s failed", request_id)
            if not status:
                error = RequestError("failed", f"request {request_id} failed; see the log")
                await send_with_id(
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
                extra={"log_to_stderr": False},  # for Serve's files only
            )


def _request_id(scope: Scope) -> str:
    """Return the id that the client sent, if it is safe in a log, else a new id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(sent := value.decode("latin-1")):
            return str(sent)
    return uuid.uuid4().hex


PROBES = ("/health", "/ready")
"""Paths for health probes, which know a server's address but not its name."""


class SourceCheck:
    """Refuse requests that a web page sends through a browser on this machine.

    Without keys, the loopback address is the only protection. A page can use a name that resolves
    to 127.0.0.1 (DNS rebinding), which the header `Host` shows. It can also send a request to
    another origin, which the header `Origin` shows.
    """

    def __init__(self, options: GatewayOptions, *, has_keys: bool) -> None:
        self._own = set(options.allowed_hosts)
        self._hosts = self._own if has_keys else self._own | set(LOOPBACK)
        self._origins = None if has_keys else set(options.cors_origins)

    def check(self, request: Request) -> None:
        """Compare the headers `Host` and `Origin` with the allowed values; absent headers pass.

        Raises:
            RequestError: The kind is `foreign` for a value that is not allowed; `malformed` for a
                repeated header.
        """
        if request.scope["path"] in PROBES:
            return
        for name in ("host", "origin"):
            if len(request.headers.getlist(name)) > 1:
                raise RequestError("malformed", f"the header {name.title()} is sent twice")
        host = request.headers.get("host")
        if self._hosts and host is not None and _host_name(host) not in self._hosts:
            raise RequestError(
                "foreign",
                f"the header Host names {host[:100]!r}, which is not served here; use "
                "127.0.0.1, or add the name to the gateway's `allowed_hosts`",
            )
        origin = request.headers.get("origin")
        if self._origins is None or origin is None or {origin, "*"} & self._origins:
            return
        page = origin.partition("://")[2].lower()
        # A proxy may replace Host, while Origin has the name that the browser uses.
        if page != (host or "").lower() and _host_name(page) not in self._own:
            raise RequestError(
                "foreign",
                f"pages of {origin[:100]!r} may not send requests; add the origin to the gateway's "
                "`cors_origins` (or its name to `allowed_hosts`, if it is this server behind a "
                "proxy), or set `keys_file`",
            )


def _host_name(host: str) -> str:
    found = HOST.fullmatch(host.strip().lower())
    return (found["address"] or found["name"].rstrip(".")) if found else ""
