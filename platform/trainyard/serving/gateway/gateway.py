"""The HTTP application in front of all models: who may ask, how much, how long; no model in here.

It reads a body whole, within a time and a size, before the request takes a place among those in work,
so that slow clients cost a connection and nothing else. What it passes on and gets back are bytes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.docs_page import add_docs
from trainyard.serving.gateway.keys import Key, KeyRing
from trainyard.serving.gateway.limits import Places, Shield, Unread, read_body
from trainyard.serving.gateway.metrics import GatewayWatch
from trainyard.serving.gateway.openapi import describe_api
from trainyard.serving.options import GatewayOptions

log = logging.getLogger("ray.serve.trainyard")

Result = TypeVar("Result")

PLAYGROUND_MAY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The page holds its own script and talks to this server alone."""


class Models(Protocol):
    """The models behind the gateway, wherever they run."""

    def names(self) -> list[str]:
        """All that can be asked, sorted."""

    def waiting_for(self) -> list[str]:
        """Those that are configured and cannot answer yet."""

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        """The answer of one model to a request's body.

        Raises:
            RequestError: when there is none.
        """

    def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        """Server-sent events of a model, for a body that asks for `"stream": true`."""

    async def describe(self, name: str) -> dict[str, Any]:
        """Labels, limits, metrics and lineage of a model."""


def build_gateway(
    models: Models,
    options: GatewayOptions,
    keys: KeyRing,
    watch: GatewayWatch | None = None,
    *,
    behind_serve: bool = False,
) -> Any:
    """The ASGI application. Behind Ray Serve, that is what tells callers their request's id."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException
    from starlette.routing import Match, Route

    from trainyard import __version__

    app = FastAPI(
        title="Trainyard",
        version=__version__,
        description="Fine-tuned models behind the shapes of the Hugging Face Inference API.",
        docs_url=None,
        redoc_url=None,
    )
    page = Path(__file__).with_name("playground.html").read_text(encoding="utf-8")
    watch = watch or GatewayWatch()
    in_work, unread = Places(options.concurrent_requests), Unread(options.unread_bytes)

    def open_to(key: Key | None) -> list[str]:
        return [name for name in models.names() if key is None or key.opens(name)]

    def known(name: str, key: Key | None) -> str:
        names = open_to(key)
        if name in names:
            return name
        raise RequestError(
            "not_found",
            "there is no such model; " + (f"there are {', '.join(names)}" if names else "none yet"),
        )

    def admit(request: Request, name: str | None = None) -> Key | None:
        key = keys.admit(request.headers.get("authorization"), name)
        request.state.key = key.name if key else ""
        return key

    def failed(request: Request, error: RequestError) -> Response:
        name = request.path_params.get("name", "")
        watch.refused(name if name in models.names() else "", error.kind)
        return Response(error.body(), error.status, error.headers(), media_type="application/json")

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> Response:
        return failed(request, error)

    @app.exception_handler(Exception)
    async def on_defect(request: Request, error: Exception) -> Response:
        del error  # logged by the shield
        return failed(request, RequestError("failed", "the server failed; its log has the reason"))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            found = RequestError("method", f"{request.method} is not for this path; see /docs")
        else:
            found = RequestError("not_found", "there is no such path; see /docs")
        response = failed(request, found)
        response.headers.update(error.headers or {})
        return response

    @app.post("/models/{name}")
    async def ask(name: str, request: Request) -> Response:
        until = time.monotonic() + _seconds(request, options.request_timeout_s)
        known(name, admit(request, name))
        in_work.check()
        body = await read_body(request, options.body_bytes, options.body_seconds, unread)
        if b'"stream"' in body and _wants_stream(body):
            # Held for the request, not by `_chain`: that never starts when the caller has left by then.
            held: AsyncExitStack = request.state.held
            held.enter_context(in_work.one())
            events = models.stream(name, body, until - time.monotonic())
            await held.enter_async_context(aclosing(events))
            first = await _within(until, anext(events))  # so that a failure has its status
            return StreamingResponse(
                _chain(first, events, until, lambda error: watch.refused(name, error.kind)),
                media_type="text/event-stream",
            )
        with in_work.one():
            answer = await _within(until, models.ask(name, body, until - time.monotonic()))
        return Response(answer.body, answer.status, answer.headers, media_type="application/json")

    async def brief(name: str) -> dict[str, Any]:
        try:
            return await models.describe(name)
        except RequestError as error:  # one that cannot be loaded does not hide the others
            return {"error": str(error)}

    @app.get("/models")
    async def list_models(request: Request) -> JSONResponse:
        names = open_to(admit(request))
        about = await asyncio.gather(*(brief(name) for name in names))
        short = ("task", "source", "revision", "status", "error")
        return JSONResponse(
            [
                {"name": name, **{key: found[key] for key in short if key in found}}
                for name, found in zip(names, about, strict=True)
            ]
        )

    @app.get("/models/{name}")
    @app.get("/models/{name}/info", include_in_schema=False)
    async def describe_model(name: str, request: Request) -> JSONResponse:
        found = await models.describe(known(name, admit(request, name)))
        return JSONResponse({"name": name, **found})

    @app.get("/models/{name}/health")
    async def model_health(name: str, request: Request) -> JSONResponse:
        await models.describe(known(name, admit(request, name)))
        return JSONResponse({"status": "ok"})

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/playground", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": PLAYGROUND_MAY})

    @app.get("/ready")
    async def ready() -> JSONResponse:
        waiting = models.waiting_for()
        if waiting or not models.names():
            raise RequestError(
                "unavailable",
                # Not their names: whoever may not use a model is not told of it.
                f"not ready: {len(waiting)} of the applications; `serve status` names them"
                if waiting
                else "not ready: no model is loaded",
                1,
            )
        return JSONResponse({"status": "ok"})

    add_docs(app)
    describe_api(app)
    asking = Route("/models/{name}", ask, methods=["POST"])

    async def front(scope: Any, receive: Any, send: Any) -> None:
        """Requests to models come past FastAPI, of which each of them would wait for 0.2 ms."""
        match, found = asking.matches(scope)
        if match is not Match.FULL:
            await app(scope, receive, send)
            return
        request = Request({**scope, **found}, receive)
        try:
            response = await ask(request.path_params["name"], request)
        except RequestError as error:
            response = failed(request, error)
        except Exception as error:
            await (await on_defect(request, error))(scope, receive, send)
            raise
        await response(scope, receive, send)

    return Shield(front, tell_id=not behind_serve)


def _seconds(request: Any, most: float) -> float:
    """How long the caller will wait: its own header, within what the gateway allows."""
    try:
        asked = float(request.headers.get("x-request-timeout-seconds", most))
    except ValueError:
        raise RequestError(
            "malformed", "the header x-request-timeout-seconds must be a number of seconds"
        ) from None
    return min(asked, most) if asked > 0 else most


def _wants_stream(body: bytes) -> bool:
    from pydantic_core import from_json

    try:
        request = from_json(body)
    except ValueError:
        return False  # whoever answers it says what is wrong
    return isinstance(request, dict) and request.get("stream") is True


async def _within(until: float, coming: Awaitable[Result]) -> Result:
    """What comes before the request's time is over.

    Raises:
        RequestError: when it does not.
    """
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await coming
    except TimeoutError:
        raise RequestError(
            "late", "no answer in time; try again later, or ask for less at once", 1
        ) from None


async def _chain(
    first: bytes,
    rest: AsyncIterator[bytes],
    until: float,
    refused: Callable[[RequestError], None],
) -> AsyncIterator[bytes]:
    """All events; a failure on the way is the last one, as the status is sent already."""
    try:
        yield first
        while True:
            yield await _within(until, anext(rest))
    except StopAsyncIteration:
        return
    except RequestError as error:
        failure = error
    except Exception:
        log.exception("a stream failed")
        failure = RequestError("failed", "the stream broke off; the server's log has the reason")
    refused(failure)
    yield b"data:" + failure.body() + b"\n\n"
