"""Limits of requests at the gateway: body size and time, concurrency, and quotas of API keys."""

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.keys import Key

CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
"""Valid values of the header Content-Length."""


class PendingBodies:
    """Bytes buffered for request bodies that are still being received.

    When all bodies together exceed `limit` bytes, a body larger than an equal share of `limit` is
    refused. A small body always passes, even while many large bodies never end.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bodies = self._bytes = 0

    @contextmanager
    def receive(self) -> Iterator[Callable[[int], None]]:
        """Count one body inside the block.

        Yields a callback that takes the bytes of each received part. It raises a `RequestError` of
        the kind `overloaded` for a body that must be refused.
        """
        held = 0

        def arrived(size: int) -> None:
            nonlocal held
            held += size
            self._bytes += size
            if self._bytes > self._limit and held > self._limit / self._bodies:
                raise RequestError(
                    "overloaded", "too many large bodies arrive at once; try again later", 1
                )

        self._bodies += 1
        try:
            yield arrived
        finally:
            self._bodies -= 1
            self._bytes -= held


class ConcurrencyLimit:
    """Refuse requests beyond `limit` in flight; the batcher does the queueing.

    Args:
        limit: Maximum requests in flight.
        whose: Words after "requests" in the error, such as " of the API key 'x'".
    """

    def __init__(self, limit: int, whose: str = "") -> None:
        self._limit, self._whose = limit, whose
        self._active = 0

    def check(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            RequestError: `limit` requests are in flight (`overloaded`).
        """
        if self._active >= self._limit:
            raise RequestError(
                "overloaded",
                f"{self._limit} requests{self._whose} are already in progress; try again later", 1,
            )  # fmt: skip

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count one request as in flight inside the block.

        Raises:
            RequestError: `limit` requests are in flight (`overloaded`).
        """
        self.check()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1


class Quotas:
    """Concurrency limit of a gateway replica, and quotas of each API key in this replica.

    Keys with equal names have separate quotas: the digest of a key identifies it.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._all = ConcurrencyLimit(limit)
        self._clock = clock
        self._limits: dict[tuple[str, int], ConcurrencyLimit] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    def count(self, key: Key | None) -> None:
        """Check the concurrency limits, and take one request from the rate limit of `key`.

        The rate limit is a token bucket that holds the requests of one minute.

        Raises:
            RequestError: A limit is reached, or the bucket is empty (`overloaded`).
        """
        self._all.check()
        if key is None:
            return
        if (limit := self._limit_of(key)) is not None:
            limit.check()
        if key.requests_per_minute is None:
            return
        rate, now = key.requests_per_minute, self._clock()
        tokens, since = self._buckets.get(key.sha256, (rate, now))
        tokens = min(rate, tokens + (now - since) * rate / 60)
        if tokens < 1:
            raise RequestError(
                "overloaded",
                f"the API key '{key.name}' is used up; it allows {rate:g} requests per minute",
                (1 - tokens) * 60 / rate,
            )
        self._buckets[key.sha256] = tokens - 1, now

    @contextmanager
    def hold(self, key: Key | None) -> Iterator[None]:
        """Count one request as in flight inside the block: for the gateway, and for `key` if given.

        Raises:
            RequestError: A concurrency limit is reached (`overloaded`).
        """
        limit = self._limit_of(key) if key else None
        if limit is None:
            with self._all.hold():
                yield
        else:
            with limit.hold(), self._all.hold():
                yield

    def _limit_of(self, key: Key) -> ConcurrencyLimit | None:
        if key.concurrent_requests is None:
            return None
        found = key.sha256, key.concurrent_requests
        if found not in self._limits:
            self._limits[found] = ConcurrencyLimit(found[1], f" of the API key '{key.name}'")
        return self._limits[found]


def _all(request: Request, name: str) -> str:
    """Return a header's value; repeated headers are joined into one list, as HTTP specifies."""
    return ", ".join(request.headers.getlist(name))


def check_media_type(request: Request, *, required: bool) -> None:
    """Refuse bodies that are not JSON.

    Browsers send some other types across origins without a preflight request.

    Raises:
        RequestError: The type is not JSON, or is missing although `required` (`media_type`).
    """
    sent = _all(request, "content-type").partition(";")[0].strip().lower()
    if sent == "application/json" or (sent.startswith("application/") and sent.endswith("+json")):
        return
    if sent or required:
        raise RequestError(
            "media_type",
            f"the body's content type is {sent[:100] or 'missing'}; send JSON with the header "
            "`Content-Type: application/json`",
        )


async def read_body(request: Request, limit: int, seconds: float, pending: PendingBodies) -> bytes:
    """Return the whole body of a request, decompressed.

    Args:
        request: Request whose body was not read yet.
        limit: Maximum bytes, before and after decompression.
        seconds: Maximum seconds until the body has arrived.
        pending: Bytes of all bodies that are being received.

    Raises:
        RequestError: The kind is `too_large` above `limit`, before reading if Content-Length
            exceeds it; `slow_body` after `seconds`; `overloaded` when `pending` refuses the body;
            `left` when the client disconnected; `malformed` for an invalid length or broken gzip;
            `media_type` for a compression other than gzip.
    """
    encoding = _all(request, "content-encoding").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise RequestError(
            "media_type", f"the body is encoded as {encoding[:100]}; send it plain or as gzip"
        )
    announced = request.headers.get("content-length", "0")
    if not CONTENT_LENGTH.fullmatch(announced):
        raise RequestError("malformed", "the header Content-Length must be a number of bytes")
    if int(announced) > limit:
        raise _too_large(limit)
    body = await _receive(request.stream(), limit, seconds, pending)
    return body if encoding in ("identity", "") else await asyncio.to_thread(_gunzip, body, limit)


async def _receive(
    stream: AsyncIterator[bytes], limit: int, seconds: float, pending: PendingBodies
) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        with pending.receive() as arrived:
            async with asyncio.timeout(seconds):
                async for part in stream:
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    arrived(len(part))
                    parts.append(part)
    except TimeoutError:
        raise RequestError(
            "slow_body", f"the body did not arrive within {seconds:g} s; send it faster"
        ) from None
    except ClientDisconnect:
        raise RequestError("left", "the client disconnected while sending its body") from None
    return b"".join(parts)


def _gunzip(body: bytes, limit: int) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error:
        plain = b""
    if len(plain) > limit:
        raise _too_large(limit)
    if not decoder.eof or decoder.unused_data:
        raise RequestError("malformed", "the body is not one whole gzip file; send it again")
    return plain


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "too_large",
        f"the body is larger than {limit} bytes; split a list over several requests, or shorten it",
    )
