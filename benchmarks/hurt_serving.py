"""Disturb our server under load: new versions, killed replicas, slow clients, overload.

    python benchmarks/hurt_serving.py --data-dir DIR --swaps 20 --kills 5 --seconds 10

Counts all answers by status (0: the connection failed). Adds its run to
benchmarks/results/hurt-serving.json, and removes earlier results of the same scenarios.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from compare_serving import sentences
from deployed import Server, replaced, until
from load import Outcome, bodies_of, classifier, closed_loop, open_loop
from provenance import provenance
from serving_process import haproxy_environment

CLIENTS = 16
READY = "seconds_to_ready"


@contextlib.contextmanager
def load(url: str, bodies: list[bytes], found: dict[str, Any], name: str) -> Iterator[None]:
    """Send requests from `CLIENTS` clients during the block; store their outcome as `name`."""
    outcome, stop = Outcome(), threading.Event()

    async def run() -> None:
        while not stop.is_set():
            part = await closed_loop(url, bodies, CLIENTS, 1.0)
            outcome.statuses.update(part.statuses)
            outcome.latencies += part.latencies
            outcome.seconds += part.seconds

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        found[name] = {**found.get(name, {}), **outcome.as_json()}
        print(name, json.dumps(found[name]), file=sys.stderr)


def swap(server: Server, bodies: list[bytes], models: list[str], times: int) -> dict[str, Any]:
    """Deploy new versions under load."""
    found: dict[str, Any] = {}
    took = []
    with load(server.url, bodies, found, "swap"):
        for number in range(1, times + 1):
            source = models[number % 2]
            server.deploy(source)
            took.append(server.wait_for(source))
    found["swap"] |= {"swaps": times, "longest_swap_s": round(max(took), 2)}
    return found


def redeploy(server: Server, bodies: list[bytes], source: str, times: int) -> dict[str, Any]:
    """Replace all replicas under load."""
    found: dict[str, Any] = {}
    took = []
    with load(server.url, bodies, found, "redeploy"):
        for number in range(1, times + 1):
            before = set(server.pids())
            server.deploy(source, 128 - number % 2)
            took.append(until(partial(replaced, server, before), "replaced"))
    found["redeploy"] |= {"redeploys": times, "longest_redeploy_s": round(max(took), 1)}
    return found


def all_serve(server: Server, wanted: bool) -> bool:
    """Return whether all replicas serve, or, with `wanted` False, whether one does not."""
    return (server.serving() == server.replicas) == wanted


def kill(server: Server, bodies: list[bytes], times: int) -> dict[str, Any]:
    """Kill one replica after another under load; wait until all serve before the next kill."""
    found: dict[str, Any] = {}
    killed = 0
    time.sleep(2)  # after a swap, Serve counts a replica as gone for a moment
    until(partial(all_serve, server, True), "whole")
    with load(server.url, bodies, found, "kill"):
        for _ in range(times):
            os.kill(server.pids()[0], signal.SIGKILL)
            killed += 1
            for back in (False, True):  # first wait until Serve notices the loss
                until(partial(all_serve, server, back), "back")
            time.sleep(1)
    found["kill"] |= {"kills": killed}
    return found


def drip(server: Server, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Add clients that send a byte per second, and one body of 300 MB, to the normal load."""
    host, port = server.url.removeprefix("http://").split("/")[0].split(":")
    head = b"POST /models/bench HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    stop = threading.Event()
    large: list[bytes] = []

    async def one() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(head % 1000)
                for _ in range(1000):
                    if stop.is_set() or writer.is_closing():
                        break
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(1)
                writer.close()

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(clients)))

    def send_large() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as sock:
            sock.settimeout(20)
            sock.sendall(head % 300_000_000)
            try:
                for _ in range(300):
                    sock.sendall(b" " * 1_000_000)
            finally:
                large.append(sock.recv(12))

    threads = [
        threading.Thread(target=lambda: asyncio.run(run())),
        threading.Thread(target=send_large),
    ]
    found: dict[str, Any] = {}
    name = f"drip_{clients}"
    for thread in threads:
        thread.start()
    time.sleep(2)
    with load(server.url, bodies, found, name):
        time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    found[name] |= {"dripping": clients, "large_body": (large or [b"closed"])[0].decode()}
    return found


def overload(server: Server, bodies: list[bytes], seconds: float) -> dict[str, Any]:
    """Offer 2, 5 and 10 times the capacity; measure goodput and the time to recover."""
    usual = asyncio.run(closed_loop(server.url, bodies, 64, seconds))
    capacity = usual.statuses[200] / usual.seconds
    found: dict[str, Any] = {"capacity": usual.as_json()}
    idle = asyncio.run(closed_loop(server.url, bodies, 1, 3)).as_json()["p50_ms"]
    for times in (2, 5, 10):
        outcome = asyncio.run(open_loop(server.url, bodies, times * capacity, seconds))
        began = time.perf_counter()
        while asyncio.run(closed_loop(server.url, bodies, 1, 0.3)).as_json()["p50_ms"] > 2 * idle:
            if time.perf_counter() - began > 60:
                break
        found[f"overload_{times}"] = outcome.as_json() | {
            "offered_per_second": round(times * capacity, 1),
            "goodput_over_capacity": round(outcome.statuses[200] / outcome.seconds / capacity, 2),
            "recovery_s": round(time.perf_counter() - began, 2),
        }
        print(times, json.dumps(found[f"overload_{times}"]), file=sys.stderr)
    return found


def main() -> None:
    """Run the requested scenarios and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--redeploys", type=int, default=2)
    parser.add_argument("--drips", type=int, nargs="*", default=[60, 400])
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--haproxy", action="store_true")
    parser.add_argument("--name", default="hurt-serving")
    args = parser.parse_args()

    bodies = bodies_of(sentences(args.data_dir, 100))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if args.haproxy:
            os.environ |= haproxy_environment(folder)
        models = [classifier(Path(folder) / name) for name in ("first", "second")]
        server = Server(args.replicas)
        server.deploy(models[0])
        results[READY] = round(server.wait_for(models[0]), 1)
        steps: list[Callable[[], dict[str, Any]]] = []
        if args.swaps:
            steps.append(lambda: swap(server, bodies, models, args.swaps))
        if args.kills:
            steps.append(lambda: kill(server, bodies, args.kills))
        if args.redeploys:
            steps.append(lambda: redeploy(server, bodies, models[0], args.redeploys))
        steps += [partial(drip, server, bodies, n, args.seconds) for n in args.drips]
        if args.overload:
            steps.append(lambda: overload(server, bodies, args.seconds))
        for step in steps:
            results |= step()
    run = {
        **provenance(args.data_dir),
        "results": results,
    }
    path = Path(__file__).parent / "results" / f"{args.name}.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    for old in kept:
        for scenario in results.keys() - {READY}:
            old["results"].pop(scenario, None)
    kept = [old for old in kept if old["results"].keys() - {READY}]
    path.write_text(json.dumps([*kept, run], indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
