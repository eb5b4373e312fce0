"""Load generator for an HTTP server: many clients on kept-alive connections, without pauses.

It uses raw sockets and prepared requests, because it shares the machine with the measured server. A
full HTTP client would need about as much CPU time as the request.
"""

import asyncio
import collections
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Outcome:
    """Result of a load: answers by status, and latencies of the 200s in seconds.

    Status 0 is a failed connection, -1 a request for which no connection was free.
    """

    seconds: float = 0.0
    statuses: "collections.Counter[int]" = field(default_factory=collections.Counter)
    latencies: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the figures: rates per second, latencies in milliseconds."""
        ordered = sorted(self.latencies) or [float("nan")]
        return {
            "requests": self.statuses.total(),
            "by_status": {str(status): n for status, n in sorted(self.statuses.items())},
            "per_second": round(self.statuses[200] / self.seconds, 1),
            "p50_ms": round(1000 * statistics.median(ordered), 2),
            "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
            "max_ms": round(1000 * ordered[-1], 2),
        }


class Connection:
    """One kept-alive connection, which is opened again after a failure."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname, parts.port, parts.path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body of its answer, or status 0 for no connection."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.host, self.port)
            reader, writer = self._streams
            writer.write(
                b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (self.path.encode(), len(body), body)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            answer = await reader.readexactly(length)
            if b"connection: close" in head:
                self.close()
            return int(head[9:12]), answer
        except (OSError, asyncio.IncompleteReadError, IndexError, ValueError):
            self.close()
            return 0, b""

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def closed_loop(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up: float = 0.0
) -> Outcome:
    """Run `clients` clients that each send the next request as soon as they get an answer."""
    outcome = Outcome()
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def client(seed: int) -> None:
        connection, rng = Connection(url), random.Random(seed)
        while (began := time.perf_counter()) < end:
            status, _ = await connection.post(rng.choice(bodies))
            if began >= begin:
                outcome.statuses[status] += 1
                if status == 200:
                    outcome.latencies.append(time.perf_counter() - began)
            if not status:
                await asyncio.sleep(0.05)
        connection.close()

    await asyncio.gather(*(client(seed) for seed in range(clients)))
    outcome.seconds = time.perf_counter() - begin
    return outcome


async def open_loop(
    url: str, bodies: Sequence[bytes], rate: float, seconds: float, connections: int = 2000
) -> Outcome:
    """Send `rate` requests per second, whether or not earlier ones are answered."""
    outcome, rng = Outcome(), random.Random(0)
    free = [Connection(url) for _ in range(connections)]
    tasks: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()

    async def one(connection: Connection, due: float) -> None:
        status, _ = await connection.post(rng.choice(bodies))
        outcome.statuses[status] += 1
        if status == 200:
            outcome.latencies.append(time.perf_counter() - due)
        free.append(connection)

    sent = 0
    while (now := time.perf_counter() - begin) < seconds:
        while sent < now * rate:
            if free:
                task = asyncio.create_task(one(free.pop(), begin + sent / rate))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                outcome.statuses[-1] += 1  # all connections are in use
            sent += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    outcome.seconds = time.perf_counter() - begin
    for connection in free:
        connection.close()
    return outcome


def bodies_of(texts: Sequence[str]) -> list[bytes]:
    """Build requests to classify texts, like those of the Hugging Face client."""
    return [
        json.dumps({"inputs": text, "parameters": {"truncation": True}}).encode() for text in texts
    ]


def classifier(folder: Any, encoder: str | None = None) -> str:
    """Save an encoder with a seeded, untrained head of two classes to `folder`; return `folder`.

    The default encoder is the pretrained MiniLM.
    """
    import torch
    import transformers

    from trainyard.config import DEFAULT_MODEL
    from trainyard.models.hub import resolve_model

    torch.manual_seed(0)
    source = resolve_model(encoder or DEFAULT_MODEL)
    transformers.AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=2, dtype=torch.float32
    ).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)
