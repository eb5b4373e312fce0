"""Kill sweeps, suites and a server at random points, and start them again with the same command.

    python benchmarks/random_kills.py --kinds sweep suite server --kills 10 --seed 1

A sweep or suite loses its driver, one of its other processes, or all of them at once. The time of
the kill is drawn from the length of an undisturbed job. The killed job must end with the
undisturbed job's result, logged lines and weights, bit-exactly. A server loses one process or all
of them under load; its answers must stay the same. At the end, no process may be left. Adds each
kind to benchmarks/results/random-kills.json.
"""

import argparse
import contextlib
import ctypes
import hashlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from load import bodies_of, classifier
from provenance import provenance
from serving_process import free_port

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.tiny import WORDS, write_task, write_tiny_model

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "random-kills.json"
ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER: the orphans of a killed driver become children of this process."""
LEAVE_SECONDS = 60
"""Maximum seconds until the processes of a killed job have ended."""
TIMED = {"seconds", "train_samples_per_second"}
"""Keys of a result that differ between equal runs."""


def started(word: str = "") -> list[psutil.Process]:
    """List the living descendants of this process whose command line contains `word`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and word in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until_gone() -> float:
    """Wait until no descendant is left; return the seconds."""
    began = time.monotonic()
    while left := started():
        if time.monotonic() - began > LEAVE_SECONDS:
            raise SystemExit(f"left running: {[process.cmdline() for process in left]}")
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


def kill(victim: str, driver: int, rng: random.Random) -> str:
    """Kill the driver, one of its descendants, or all; return what was killed."""
    alive = started()
    below = [process for process in alive if process.pid != driver]
    chosen = {
        "driver": [process for process in alive if process.pid == driver],
        "process": [rng.choice(below)] if below else [],
        "all": alive,
    }[victim]
    names = [name_of(process) for process in chosen]
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return names[0] if len(names) == 1 else f"{len(names)} processes"


def name_of(process: psutil.Process) -> str:
    """Return the first word of a command line after Python and its options."""
    with contextlib.suppress(psutil.Error):
        words = [Path(word).name for word in process.cmdline() if not word.startswith("-")]
        return next((word for word in words if not word.startswith("python")), process.name())
    return "gone"


class Job:
    """Sweep or suite on tiny data, in run folders below `storage`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.storage = kind, folder / "runs"
        if not (folder / "model").exists():
            write_tiny_model(folder / "model")
            write_task(folder / "glue", train=600, validation=64)
        shared = [
            "--data-dir", str(folder / "glue"), "--model-name-or-path", str(folder / "model"),
            "--storage-path", str(self.storage), "--max-length", "32", "--train-batch-size", "16",
            "--per-device-train-batch-size", "4", "--learning-rate", "1e-3",
            "--resources-per-worker", "CPU", "1",
        ]  # fmt: skip
        own = {
            "sweep": ["tune.py", "--task", "mrpc", "--num-train-epochs", "5", "--num-trials", "4",
                      "--logging-steps", "5", "--save-steps", "20",
                      "--max-concurrent-trials", "2", "--scheduler", "fifo", "--confirm-top", "1",
                      "--confirm-seeds", "2", "--set", "learning_rate=loguniform:1e-4:1e-2"],
            "suite": ["glue.py", "--tasks", "mrpc", "--seeds", "1", "2", "3", "4",
                      "--max-steps", "190", "--max-parallel-workers", "2"],
        }[kind]  # fmt: skip
        script, *flags = own
        self.storage.mkdir(exist_ok=True)
        self._line = [sys.executable, str(ROOT / "jobs" / script), *shared, *flags]

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """Start the command of the job called `name`."""
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT / "platform"), "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with (
            (self.storage / f"{name}.out").open("w") as output,
            (self.storage / f"{name}.log").open("a") as log,
        ):
            return subprocess.Popen(
                [*self._line, "--run-name", name], env=environment, stdout=output, stderr=log
            )

    def said(self, name: str) -> str:
        """Return the end of the messages of a job's attempts."""
        return (self.storage / f"{name}.log").read_text()[-3000:]

    def outcome(self, name: str) -> dict[str, Any]:
        """Return what must be equal: the result, and each run's logged lines and weights."""
        folder = self.storage / name
        said = (self.storage / f"{name}.out").read_text().splitlines()[-1]
        found = {"answer": _untimed(json.loads(said.replace(name, "NAME")))}
        for path in sorted(folder.rglob("metrics.jsonl")):
            lines = [_untimed(json.loads(line)) for line in path.read_text().splitlines()]
            found[str(path.relative_to(folder))] = lines
        for path in sorted(folder.rglob("model/model.safetensors")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
        return found


def _untimed(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _untimed(value) for key, value in found.items() if key not in TIMED}
    return [_untimed(value) for value in found] if isinstance(found, list) else found


def hurt_job(kind: str, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Run jobs until `kills` attempts were killed; compare each job with an undisturbed one."""
    job = Job(kind, folder)
    began = time.monotonic()
    ended = job.start("undisturbed").wait()
    length = time.monotonic() - began
    assert ended == 0, job.said("undisturbed")
    expected = job.outcome("undisturbed")
    log: list[dict[str, Any]] = []
    compared = 0
    while len(log) < kills or not compared:
        name = f"killed-{compared}"
        status: int | None = None
        while status != 0:
            victim, delay = rng.choice(("driver", "process", "all")), rng.uniform(0, length)
            process, hurt = job.start(name), len(log) < kills
            with contextlib.suppress(subprocess.TimeoutExpired):
                status, hurt = process.wait(delay if hurt else 10 * length), False
            if hurt:
                entry = {"job": name, "at_seconds": round(delay, 1), "victim": victim}
                entry["killed"] = kill(victim, process.pid, rng)
                status = entry["exit_status"] = process.wait(10 * length)
                log.append(entry)
                print(json.dumps(entry), file=sys.stderr, flush=True)
            assert hurt or status == 0, f"{name} failed unhurt: {job.said(name)}"
        found = job.outcome(name)
        differs = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        assert not differs, f"{name} differs from the undisturbed one: {differs}"
        compared += 1
    return {"kills": log, "compared": compared, "undisturbed_seconds": round(length, 1)}


SERVER = """
http_options: {{host: 127.0.0.1, port: {port}, request_timeout_s: 120}}
applications:
- {{name: gateway, route_prefix: /, import_path: "serve.app:gateway"}}
- name: bench
  route_prefix: null
  import_path: "serve.app:model"
  args: {{num_replicas: 2, num_cpus: 0.1, threads: 1}}
  deployments: [{{name: Model, user_config: {{source: "{model}"}}}}]
"""
PARTS = {
    "replica": "ServeReplica:bench", "gateway": "ServeReplica:gateway", "proxy": "ProxyActor",
    "controller": "ServeController", "all": "",
}  # fmt: skip
"""Part of the server -> text in the command line of its processes."""


class Client:
    """Client that sends one request after another, and counts answers by the part killed last."""

    def __init__(self, url: str) -> None:
        self.url, self.phase = url, "start"
        self.statuses: dict[str, Counter[str]] = {}
        self.expected: dict[bytes, bytes] = {}
        self.in_a_row = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_until_served(self, seconds: float = 120) -> float:
        """Wait for ten correct answers in a row; return the seconds."""
        began, self.in_a_row = time.monotonic(), 0
        while self.in_a_row < 10:
            if time.monotonic() - began > seconds:
                raise SystemExit(f"no answers after {self.phase}: {self.statuses}")
            time.sleep(0.05)
        return round(time.monotonic() - began, 1)

    def _run(self) -> None:
        bodies = bodies_of([f"bafe dulo {word}" for word in WORDS[:20]])
        for number in itertools.count():
            if self._stop.is_set():
                return
            body = bodies[number % len(bodies)]
            outcome = self._ask(body)
            self.in_a_row = self.in_a_row + 1 if outcome == "200" else 0
            self.statuses.setdefault(self.phase, Counter())[outcome] += 1
            time.sleep(0.02)

    def _ask(self, body: bytes) -> str:
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            return str(error.code)
        except (OSError, http.client.HTTPException):
            return "no connection"
        return "200" if self.expected.setdefault(body, answer) == answer else "another answer"


def hurt_server(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Serve with two replicas under load; kill a part of the server at random moments."""
    port = free_port()
    model = classifier(folder / "served")
    (folder / "server.yaml").write_text(SERVER.format(port=port, model=model))
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def start() -> "subprocess.Popen[bytes]":
        with (folder / "server.log").open("ab") as log:
            command = [str(Path(sys.executable).parent / "serve"), "run", "server.yaml"]
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    server = start()
    log: list[dict[str, Any]] = []
    with Client(f"http://127.0.0.1:{port}/models/bench") as client:
        client.wait_until_served()
        for number in range(kills):
            time.sleep(rng.uniform(0, 5))
            part = list(PARTS)[number % len(PARTS)]
            while not (alive := started(PARTS[part])):  # not back yet after an earlier kill
                time.sleep(0.1)
            client.phase = part
            for process in alive if part == "all" else [rng.choice(alive)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if part == "all":
                server.wait()
                server = start()
            time.sleep(1)
            log.append({"killed": part, "served_again_seconds": client.wait_until_served()})
            print(json.dumps(log[-1]), file=sys.stderr, flush=True)
        statuses = {phase: dict(counts) for phase, counts in client.statuses.items()}
    server.send_signal(signal.SIGINT)
    server.wait(60)
    assert not any("another answer" in counts for counts in statuses.values()), statuses
    assert statuses["replica"].keys() == {"200"}, statuses["replica"]
    return {"kills": log, "by_status": statuses}


def main() -> None:
    """Kill jobs of each kind and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ["sweep", "suite", "server"]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep everything here")
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    for kind in args.kinds:
        try:
            found = hurt(kind, args.folder, args.kills, random.Random(args.seed))
        finally:
            for process in started():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept[kind] = {**provenance(), "seed": args.seed, **found}
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
        print(json.dumps({kind: found}))


def hurt(kind: str, kept: Path | None, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill jobs of one kind in the folder `kept`, or in a temporary folder."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = kept or Path(made)
        work = hurt_server if kind == "server" else partial(hurt_job, kind)
        return {**work(folder, kills, rng), "gone_after_seconds": wait_until_gone()}


if __name__ == "__main__":
    main()
