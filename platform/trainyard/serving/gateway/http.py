"""HTTP application in front of all models: keys, limits, routes and errors. It holds no model.

The whole body is read, within limits of time and size, before a request counts as in flight. So a
slow client costs one connection. Bodies and answers are forwarded as bytes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.convertors import StringConvertor, register_url_convertor  # codespell:ignore
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainyard import __version__
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.admission import (
    PendingBodies,
    Quotas,
    check_media_type,
    read_body,
)
from trainyard.serving.gateway.keys import Key, KeyRing
from trainyard.serving.gateway.landing import EXAMPLE, LANDING_POLICY, curl, links
from trainyard.serving.gateway.landing import page as landing_page
from trainyard.serving.gateway.middleware import RequestMiddleware, SourceCheck
from trainyard.serving.gateway.openapi import EXAMPLES, add_docs, describe_api, with_examples
from trainyard.serving.options import SUFFIXES, GatewayOptions

log = logging.getLogger("ray.serve.trainyard")

Result = TypeVar("Result")

PLAYGROUND_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content security policy of the playground, which has inline scripts and connects only to this
server."""


class ModelName(StringConvertor):
    """Path parameter NAME or ORG/NAME, without the pages below a model (`SUFFIXES`)."""

    regex = rf"[^/]+(?:/(?!(?:{'|'.join(SUFFIXES)})/?$)[^/]+)?/?"


register_url_convertor("model", ModelName())

LOADING_SECONDS = 5.0
"""Seconds, sent as Retry-After for a model that is still loading."""

BRIEF = ("task", "source", "revision", "status", "error")
"""Keys of a model's description that `GET /models` returns."""


class Models(Protocol):
    """Interface of the models behind a gateway."""

    def names(self) -> list[str]:
        """Return the names of all models that take requests, sorted."""

    def waiting_for(self) -> list[str]:
        """Return the names of configured applications that cannot answer yet."""

    def loading(self) -> Mapping[str, str]:
        """Return the configured models that cannot answer yet, each with the reason."""

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        """Send a request's body to a model; return its answer, due within `seconds`.

        Raises:
            RequestError: No replica answers.
        """

    def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[Answer | bytes]:
        """Send a body that may ask for `"stream": true`, to be answered within `seconds`.

        Yields server-sent events, or a single `Answer` when the body does not ask for a stream.

        Raises:
            RequestError: There is no answer, or no further event.
        """

    async def describe(self, name: str) -> dict[str, Any]:
        """Return the labels, limits, metrics and lineage of a model.

        Raises:
            RequestError: The model cannot be described.
        """


class GatewayMetrics:
    """Metrics that count nothing, for gateways outside Ray; base of `RayGatewayMetrics`."""

    def refused(self, model: str, kind: str) -> None:
        """Count an error of the gateway by its kind in `STATUSES`; `model` is empty if unknown."""


class RayGatewayMetrics(GatewayMetrics):
    """Ray metrics of the errors that no replica sees, such as a missing key or a slow body."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._refused = Counter(
            "trainyard_gateway_refused_total",
            description="Requests that the gateway itself answered with an error, by kind.",
            tag_keys=("model", "kind"),
        )

    def refused(self, model: str, kind: str) -> None:
        self._refused.inc(tags={"model": model, "kind": kind})


def build_gateway(
    models: Models,
    options: GatewayOptions,
    keys: KeyRing,
    metrics: GatewayMetrics | None = None,
    *,
    behind_serve: bool = False,
) -> ASGIApp:
    """Build the ASGI application of a gateway.

    Args:
        models: Models that take the requests.
        options: Limits, host names and origins.
        keys: API keys, or a ring that requires none.
        metrics: Counter of errors. Default: none.
        behind_serve: True if Ray Serve runs the application; Serve then sends the request id to the
            client.
    """
    app = FastAPI(
        title="Trainyard",
        version=__version__,
        description="Fine-tuned models behind the shapes of the Hugging Face Inference API.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    page = Path(__file__).with_name("playground.html").read_text(encoding="utf-8")
    metrics = metrics or GatewayMetrics()
    quotas, pending = Quotas(options.concurrent_requests), PendingBodies(options.unread_bytes)
    source = SourceCheck(options, has_keys=keys.required)

    def names_for(key: Key | None) -> list[str]:
        return [name for name in models.names() if key is None or key.opens(name)]

    def admit(request: Request, name: str | None = None) -> Key | None:
        key = keys.admit(request.headers.get("authorization"), name)
        request.state.key = key.name if key else ""
        names = names_for(key)
        if name is not None and name not in names:
            if (reason := models.loading().get(name)) is not None:
                raise RequestError("unavailable", f"model '{name}' {reason}", LOADING_SECONDS)
            listed = f"available: {', '.join(names)}" if names else "none is available yet"
            raise RequestError("not_found", f"no model named '{name[:100]}'; {listed}")
        quotas.count(key)
        return key

    async def answer_error(request: Request, error: Exception) -> Response:
        """Build the response to any error, for FastAPI's routes and for the fast path."""
        headers: dict[str, str] = {}
        if isinstance(error, HTTPException):
            if error.status_code == 405:
                headers["allow"] = _allowed_methods(app, request.scope)
                error = RequestError("method", f"{request.method} is not for this path; see /docs")
            else:
                error = RequestError("not_found", "there is no such path; see /docs")
        elif not isinstance(error, RequestError):  # logged by the middleware
            error = RequestError("failed", "the server failed; its log has the reason")
        name = request.path_params.get("name", "")
        metrics.refused(name if name in models.names() else "", error.kind)
        headers |= error.headers()
        return Response(error.body(), error.status, headers, media_type="application/json")

    for kind in (RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, answer_error)

    @app.post("/models/{name:model}", tags=["models"])
    async def ask(name: str, request: Request) -> Response:
        until = time.monotonic() + _seconds(request, options.request_timeout_s)
        name = name.removesuffix("/")
        key = admit(request, name)
        check_media_type(request, required=not keys.required)
        body = await read_body(request, options.body_bytes, options.body_seconds, pending)
        if b'"stream"' not in body:  # no stream is requested; most bodies are not parsed here
            with quotas.hold(key):
                answer = await _within(until, models.ask(name, body, until - time.monotonic()))
            return _response(answer)
        # The request closes these: a response's generator never starts if the client has left.
        held: AsyncExitStack = request.state.held
        held.enter_context(quotas.hold(key))
        events = models.stream(name, body, until - time.monotonic())
        await held.enter_async_context(aclosing(events))
        first = await _within(until, anext(events))  # so that an error sets the status
        if isinstance(first, Answer):
            return _response(first)
        rest = _chain(first, events, until, lambda error: metrics.refused(name, error.kind))
        return StreamingResponse(rest, media_type="text/event-stream")

    async def brief(name: str) -> dict[str, Any]:
        try:
            return await models.describe(name)
        except RequestError as error:  # list the other models despite a broken one
            return {"error": str(error)}

    @app.get("/models", tags=["models"])
    @app.get("/models/", include_in_schema=False)
    async def list_models(request: Request) -> JSONResponse:
        key = admit(request)
        names = names_for(key)
        with quotas.hold(key):
            found = await asyncio.gather(*(brief(name) for name in names))
        return JSONResponse(
            [
                {"name": name, **{key: about[key] for key in BRIEF if key in about}}
                for name, about in zip(names, found, strict=True)
            ]
        )

    async def describe(name: str, request: Request) -> dict[str, Any]:
        key = admit(request, name)
        with quotas.hold(key):
            return await models.describe(name)

    @app.get("/models/{name:model}/health", tags=["status"])
    async def model_health(name: str, request: Request) -> JSONResponse:
        await describe(name, request)
        return JSONResponse({"status": "ok"})

    @app.get("/models/{name:model}", tags=["models"])
    @app.get("/models/{name:model}/info", include_in_schema=False)  # matched first
    async def describe_model(name: str, request: Request) -> JSONResponse:
        name = name.removesuffix("/")
        return JSONResponse({"name": name, **await describe(name, request)})

    async def example_of(names: list[str]) -> Mapping[str, Any]:
        """Return the example of the first model, or a general one if it is unknown."""
        about = await brief(names[0]) if names else {}
        example: Mapping[str, Any] = about.get("example", EXAMPLE)
        return example

    @app.get("/", include_in_schema=False)
    async def landing(request: Request) -> Response:
        names = [] if keys.required else models.names()
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse(links(names))
        base, command = str(request.base_url).rstrip("/"), None
        if not keys.required:
            with quotas.hold(None):
                command = curl(base, (*names, "NAME")[0], await example_of(names), key=False)
        waiting = [] if keys.required else sorted(models.loading())
        return HTMLResponse(
            landing_page(base, names, waiting, command),
            headers={"content-security-policy": LANDING_POLICY},
        )

    @app.get("/openapi.json", include_in_schema=False)
    async def schema() -> JSONResponse:
        """Return the OpenAPI schema, with examples of the loaded models if no key is required."""
        names = [] if keys.required else models.names()[:EXAMPLES]
        with quotas.hold(None):
            found = await asyncio.gather(*(brief(name) for name in names))
        return JSONResponse(with_examples(app.openapi(), dict(zip(names, found, strict=True))))

    @app.get("/health", tags=["status"])
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/playground", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": PLAYGROUND_POLICY})

    @app.get("/ready", tags=["status"])
    async def ready() -> JSONResponse:
        waiting = models.waiting_for()
        if waiting or not models.names():
            raise RequestError(
                "unavailable",
                # A number, not names: a client without a key for a model must not learn of it.
                f"not ready: {len(waiting)} of the applications; `serve status` names them"
                if waiting
                else "not ready: no model is loaded",
                1,
            )
        return JSONResponse({"status": "ok"})

    add_docs(app)
    describe_api(app, has_keys=keys.required)
    fast_path = Route("/models/{name:model}", ask, methods=["POST"])

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        """Serve `POST /models/{name}` without FastAPI's dispatch, and all other routes with it."""
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request = Request(scope, receive)
        respond: ASGIApp = partial(_serve, app)
        try:
            source.check(request)
            match, found = fast_path.matches(scope)
            if match is Match.FULL:
                request = Request({**scope, **found}, receive)
                respond = await ask(request.path_params["name"], request)
        except RequestError as error:
            respond = await answer_error(request, error)
        except Exception as error:
            await (await answer_error(request, error))(scope, receive, send)
            raise
        await respond(scope, receive, send)

    outer: ASGIApp = front
    if options.cors_origins:
        outer = CORSMiddleware(
            front, list(options.cors_origins), ["GET", "POST"], ["*"],
            expose_headers=["x-request-id", "retry-after", "x-truncated-tokens"],
        )  # fmt: skip
    return RequestMiddleware(outer, send_id=not behind_serve)


async def _serve(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run a route of FastAPI; answer HEAD like GET, without the body."""
    if scope["method"] != "HEAD":
        await app(scope, receive, send)
        return

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    await app({**scope, "method": "GET"}, receive, send_headers)


def _allowed_methods(app: FastAPI, scope: Scope) -> str:
    found = {
        method
        for route in app.routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers, media_type="application/json")


def _seconds(request: Request, limit: float) -> float:
    try:
        wanted = float(request.headers.get("x-request-timeout-seconds", limit))
    except ValueError:
        raise RequestError(
            "malformed", "the header x-request-timeout-seconds must be a number of seconds"
        ) from None
    return min(wanted, limit) if wanted > 0 else limit


async def _within(until: float, coming: Awaitable[Result]) -> Result:
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await coming
    except TimeoutError:
        raise RequestError(
            "late", "no answer in time; try again later, or ask for less at once", 1
        ) from None


async def _chain(
    first: bytes,
    rest: AsyncIterator[Answer | bytes],
    until: float,
    refused: Callable[[RequestError], None],
) -> AsyncIterator[bytes]:
    """Yield all events of a stream.

    The status was already sent, so an error becomes the last event. `refused` is called with the
    error.
    """
    try:
        yield first
        while True:
            event = await _within(until, anext(rest))
            assert isinstance(event, bytes)
            yield event
    except StopAsyncIteration:
        return
    except RequestError as error:
        failure = error
    except Exception:
        log.exception("a stream failed")
        failure = RequestError("failed", "the stream broke off; the server's log has the reason")
    refused(failure)
    yield b"data:" + failure.body() + b"\n\n"
