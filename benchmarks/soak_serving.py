"""Check for memory growth of our server over a long time at moderate load.

    python benchmarks/soak_serving.py --data-dir DIR --minutes 60 --per-second 5

Reads the private memory (USS) of each serving process every minute. Its growth is the slope of a
line fitted to the second half of the readings. So memory that is filled once (caches, allocator
pools) does not count. Writes benchmarks/results/soak-serving.json.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from compare_serving import sentences
from deployed import Server, started
from load import Outcome, bodies_of, classifier, open_loop
from provenance import provenance

KINDS = {"ServeReplica:bench:Model": "model", "ServeReplica:gateway": "gateway", "ProxyActor": "proxy",
         "ServeController": "controller", "haproxy": "haproxy"}  # fmt: skip
"""Text in a process's command line -> kind of process."""


def memory() -> dict[str, float]:
    """Return the private memory in MiB of each serving process, by kind and process id."""
    found = {}
    for word, kind in KINDS.items():
        for process in started(word):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                found[f"{kind} {process.pid}"] = process.memory_full_info().uss / 2**20
    return found


def growth(readings: list[dict[str, float]], minutes: list[float]) -> dict[str, dict[str, float]]:
    """Return first, middle and last MiB, and MiB per hour, of processes in all `readings`."""
    import numpy as np

    half = len(readings) // 2
    found = {}
    for name in sorted(set.intersection(*(set(reading) for reading in readings))):
        values = [reading[name] for reading in readings]
        slope = np.polyfit(minutes[half:], values[half:], 1)[0]
        found[name] = {"first_mib": round(values[0], 1), "half_way_mib": round(values[half], 1),
                       "last_mib": round(values[-1], 1), "mib_an_hour": round(60 * slope, 2)}  # fmt: skip
    return found


def median_ms(outcome: Outcome) -> float:
    """Return the median latency in milliseconds.

    Raises:
        SystemExit: No request succeeded, so memory at moderate load was not measured.
    """
    if not outcome.latencies:
        raise SystemExit(
            f"no request succeeded, answers by status: {dict(outcome.statuses)}; fix the server, "
            "and measure again"
        )
    return round(1000 * statistics.median(outcome.latencies), 1)


def main() -> None:
    """Send requests, read the memory every minute, and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--per-second", type=float, default=5)
    parser.add_argument("--replicas", type=int, default=2)
    args = parser.parse_args()

    bodies = bodies_of(sentences(args.data_dir, 100))
    total = Outcome()
    readings, minutes = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = classifier(folder)
        server = Server(args.replicas)
        server.deploy(model)
        server.wait_for(model)
        stop = threading.Event()

        async def ask() -> None:
            while not stop.is_set():
                part = await open_loop(server.url, bodies, args.per_second, 10, connections=64)
                total.statuses.update(part.statuses)
                total.latencies.extend(part.latencies)

        thread = threading.Thread(target=lambda: asyncio.run(ask()))
        thread.start()
        began = time.monotonic()
        while (passed := (time.monotonic() - began) / 60) < args.minutes:
            readings.append(memory())
            minutes.append(passed)
            print(f"{passed:.0f} min", json.dumps(readings[-1]), file=sys.stderr)
            time.sleep(60)
        stop.set()
        thread.join()
    result: dict[str, Any] = {
        **provenance(args.data_dir),
        "by_status": {str(status): n for status, n in sorted(total.statuses.items())},
        "p50_ms": median_ms(total),
        "growth": growth(readings, minutes),
        "readings": readings,
    }
    path = Path(__file__).parent / "results" / "soak-serving.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["growth"]))


if __name__ == "__main__":
    main()
