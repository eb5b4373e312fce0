"""Upgrade set: runs of an older version, and the steps of jobs on them.

Jobs run as subprocesses of a checkout. The old code takes the same steps as the new code, and its
outcome is the reference. Nothing here imports the package.

    SET/set.json      commands, the commit that made the set, the reference
    SET/kept/         files that the old jobs left: model/ data/ rows.csv runs/ bucket/
    SET/home/         the copy that jobs work on; records hold this path, so only one can exist
"""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from support.s3_server import BUCKET, KEY, serve
from support.weights import weights_hash

DATA = ("--data-dir", "data", "--resources-per-worker", "CPU", "1", "--max-length", "32")
RUN = (*DATA, "--task", "mrpc", "--train-batch-size", "16", "--per-device-train-batch-size", "4",
       "--learning-rate", "1e-3", "--logging-steps", "2")  # fmt: skip
LONG = (*RUN, "--num-train-epochs", "60", "--eval-steps", "60", "--save-steps", "20")
"""Flags of a run of 360 steps, long enough to be interrupted."""

PARTS = {
    "finished": ("train", *RUN, "--num-train-epochs", "2"),  # named by its hash
    "stopped": ("train", *LONG, "--run-name", "stopped"),
    "killed": ("train", *LONG, "--run-name", "killed"),
    "bucket": ("train", *LONG, "--run-name", "bucket", "--storage-path", f"s3://{BUCKET}/runs"),
    "sweep": ("tune", *RUN, "--num-train-epochs", "2", "--run-name", "sweep", "--num-trials", "3",
              "--set", "learning_rate=loguniform:1e-4:1e-2", "--scheduler", "fifo",
              "--max-concurrent-trials", "2", "--confirm-top", "1", "--confirm-seeds", "2"),
    "suite": ("glue", *DATA, "--run-name", "suite", "--tasks", "mrpc", "rte", "--seeds", "1", "2",
              "--max-steps", "16", "--max-parallel-workers", "2"),
}  # fmt: skip
"""Job and flags of each part of the set."""

MORE_TRIALS = ("--num-trials", "5")

QUESTION = {"inputs": {"text": "baa bae", "text_pair": "baa cob"}, "parameters": {"top_k": 2}}


class UpgradeError(Exception):
    """Error of a step with an unexpected outcome."""


def commands_at(home: Path) -> dict[str, list[str]]:
    """Complete `PARTS` with the model's absolute path: workers have another working directory."""
    model = ("--model-name-or-path", str(home / "model"))
    return {name: [*command, *model] for name, command in PARTS.items()}


@dataclass(frozen=True)
class Jobs:
    """Jobs of a checkout, run in the folder `home`."""

    checkout: Path
    python: Path
    home: Path
    endpoint: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a job: a local Ray, no Hub, the bucket, a scratch folder in `home`."""
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {
            **inherited,
            "PYTHONPATH": str(self.checkout / "platform"), "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "TRAINYARD_CACHE": str(self.scratch), "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        }  # fmt: skip

    @property
    def scratch(self) -> Path:
        """Scratch folder of runs in the bucket."""
        return self.home / "scratch"

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a job in its own process group."""
        script = self.checkout / f"jobs/{command[0]}.py"
        return subprocess.Popen(
            [str(self.python), str(script), *command[1:]],
            cwd=self.home, env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @contextmanager
    def server(self, url: str, *command: str, **environment: str) -> Iterator[None]:
        """Start a server, wait for its first answer at `url`, stop it at the end of the block."""
        log = self.home / "server.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                command, cwd=self.home, env={**self.environment, **environment},
                start_new_session=True, stdout=file, stderr=file,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        try:
            while not answers(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise UpgradeError(f"{url} does not answer:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=120)

    def run(self, *command: str) -> dict[str, Any]:
        """Run a job that must succeed, and return its last line."""
        say(f"  {' '.join(command[:1])} …")
        job = self.start(*command)
        out, err = job.communicate(timeout=900)
        if job.returncode != 0:
            raise UpgradeError(f"{' '.join(command)} ended with {job.returncode}:\n{err[-3000:]}")
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    def interrupt(self, progress: Callable[[], int], how: signal.Signals, *command: str) -> None:
        """Start a run and send it a signal after more than 100 steps."""
        say(f"  {command[0]}, to be interrupted …")
        job = self.start(*command)
        deadline = time.monotonic() + 300
        while progress() <= 100:
            if job.poll() is not None or time.monotonic() > deadline:
                raise UpgradeError(
                    f"{' '.join(command)} was not interrupted: {job.communicate()[1]}"
                )
            time.sleep(0.02)
        job.send_signal(how)
        _, err = job.communicate(timeout=120)
        if job.returncode != (143 if how == signal.SIGTERM else -how):
            raise UpgradeError(f"{' '.join(command)} ended with {job.returncode}:\n{err[-3000:]}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def copy_at_home(folder: Path) -> Iterator[Path]:
    """Copy a set to its home, and delete the copy at the end."""
    home = folder / "home"
    try:
        home.mkdir()
    except FileExistsError:
        raise UpgradeError(f"{home} exists; wait for the other check, or delete it") from None
    try:
        shutil.copytree(folder / "kept", home, dirs_exist_ok=True)
        yield home
    finally:
        shutil.rmtree(home)


def take_steps(
    checkout: Path,
    python: Path,
    home: Path,
    commands: Mapping[str, Sequence[str]],
    only: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Open, serve, resume and extend a copy of the set; return the outcome by step, and failures.

    Take all steps, or `only` some.
    """
    outcome, failures = {}, []
    (run,) = (path.name for path in (home / "runs").glob("mrpc-*"))
    pages = [run, "stopped", "killed", "sweep", "sweep/trials/trial-0000",
             "sweep/confirmation/default-seed-0"]  # fmt: skip
    with serve(home / "bucket") as endpoint:
        jobs = Jobs(checkout, python, home, endpoint)
        steps: dict[str, Callable[[], Any]] = {
            "dashboard": lambda: dashboard(jobs, pages),
            "finished run": lambda: returned(jobs, "runs", commands["finished"], "*/run.json"),
            "predictions": lambda: predictions(jobs, run),
            "served run": lambda: answer(jobs, run),
            "stopped run": lambda: resumed(jobs, "stopped", commands["stopped"]),
            "killed run": lambda: resumed(jobs, "killed", commands["killed"]),
            "run in a bucket": lambda: resumed(jobs, "bucket", commands["bucket"]),
            "sweep": lambda: returned(jobs, "runs/sweep", commands["sweep"], "**/*.json"),
            "extended sweep": lambda: extended(jobs, commands["sweep"]),
            "suite": lambda: returned(jobs, "runs/suite", commands["suite"], "*/run.json"),
            "table of the suite": lambda: table(home / "runs/suite/glue.json"),
        }
        for name, step in steps.items():
            if only and name not in only:
                continue
            try:
                outcome[name] = step()
            except (UpgradeError, OSError) as error:
                failures.append(f"{name}: {error}")
                say(f"FAILED   {name}")
    return outcome, failures


VOLATILE = (
    "seconds", "train_samples_per_second", "load_seconds", "time_ledger", "mfu", "peak_flops",
)  # fmt: skip
"""Keys of a result that differ from run to run."""


def stable(found: Any) -> Any:
    """Remove the volatile keys of a result."""
    if isinstance(found, dict):
        return {key: stable(value) for key, value in found.items() if key not in VOLATILE}
    return [stable(item) for item in found] if isinstance(found, list) else found


def stamps(folder: Path, pattern: str) -> dict[str, int]:
    """Return the modification times of files below a folder."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob(pattern)}


def returned(jobs: Jobs, folder: str, command: Sequence[str], records: str) -> dict[str, Any]:
    """Run the command of a finished part, which must return its result without repeating work."""
    before = stamps(jobs.home / folder, records)
    result = jobs.run(*command)
    if not before or stamps(jobs.home / folder, records) != before:
        raise UpgradeError(f"{' '.join(command)} repeated finished work")
    return dict(stable(result))


ADDED = {"eval_loss"}
"""Keys of metrics.jsonl that newer code adds."""


def resumed(jobs: Jobs, name: str, command: Sequence[str]) -> dict[str, Any]:
    """Resume an interrupted run; return its result, its first step and its weights."""
    result = jobs.run(*command)
    there = jobs.home / ("bucket" if name == "bucket" else "runs")
    (run,) = (path.parent for path in there.rglob(f"{name}/run.json"))
    first = first_step(run / "tensorboard")
    if first <= 10:
        raise UpgradeError(f"{' '.join(command)} started from the beginning")
    if stable(jobs.run(*command)) != stable(result):
        raise UpgradeError(f"{' '.join(command)} returns another result once it is finished")
    (last,) = run.glob(f"checkpoints/step-{result['steps']:08d}*/model.safetensors")
    return {
        "result": stable(result),
        "first step": first,
        "best weights": weights_hash(
            run / "model/model.safetensors"
        ),  # from before the interruption
        "last weights": weights_hash(last),
        "metrics.jsonl": [
            json.dumps({k: v for k, v in json.loads(line).items() if k not in ADDED})
            for line in (run / "metrics.jsonl").open()
        ],
    }


def extended(jobs: Jobs, command: Sequence[str]) -> dict[str, Any]:
    """Extend a finished sweep by two trials; the other trials must not change."""
    folder = jobs.home / "runs/sweep"
    before = stamps(folder, "trials/*/metrics.jsonl")
    result = jobs.run(*command, *MORE_TRIALS)
    after = stamps(folder, "trials/*/metrics.jsonl")
    if len(after) != len(before) + 2 or {key: after[key] for key in before} != before:
        raise UpgradeError(f"{' '.join(command)} repeated trials")
    with (folder / "trials.csv").open(newline="") as file:
        rows = [
            {key: value for key, value in row.items() if "seconds" not in key}
            for row in csv.DictReader(file)
        ]
    return {"result": stable(result), "trials": rows}


def table(path: Path) -> Any:
    """Read the scores of a suite's table."""
    rows = json.loads(path.read_text())["tasks"]
    return [{key: stable(row[key]) for key in ("task", "seeds", "metrics", "glue")} for row in rows]


def predictions(jobs: Jobs, run: str) -> Any:
    """Predict the rows of a file with a run's model."""
    jobs.run("predict", "--model-name-or-path", f"runs/{run}/model", "--input-file", "rows.csv",
             "--output-file", "predicted.jsonl", "--text-pair-column", "other")  # fmt: skip
    return [json.loads(line) for line in (jobs.home / "predicted.jsonl").open()]


def answers(url: str) -> bool:
    try:
        urlopen(url, timeout=10).close()
    except OSError:  # URLError is one
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def first_step(tensorboard: Path) -> int:
    """Return the first step that the last attempt of a run logged."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = LegacyEventFileLoader(str(max(tensorboard.iterdir()))).Load()
    return min(int(event.step) for event in events if event.step)


def dashboard(jobs: Jobs, keys: Sequence[str]) -> dict[str, Any]:
    """Open the dashboard; each page must contain the name of its run, the first page all names."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    pages = {}
    command = (str(jobs.python), str(jobs.checkout / "jobs/dashboard.py"))
    with jobs.server(url, *command, "--storage-path", "runs", "--port", str(port)):
        for key in ("", *keys):
            with urlopen(f"{url}/view/{key}" if key else url, timeout=60) as response:
                text = response.read().decode()
                names = [key.rpartition("/")[2]] if key else [one for one in keys if "/" not in one]
                missing = [name for name in names if name not in text]
                if missing:
                    raise UpgradeError(f"the dashboard's page {key or '/'} does not name {missing}")
                pages[key or "/"] = response.status
    return pages


def answer(jobs: Jobs, run: str) -> Any:
    """Serve a run; return its answer to one request, its labels, metrics and lineage."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"name": "gateway", "route_prefix": "/", "import_path": "serve.app:gateway", "args": {}},
            {"name": "mail", "route_prefix": None, "import_path": "serve.app:model", "args": {},
             "deployments": [{"name": "Model",
                              "user_config": {"source": str(jobs.home / "runs" / run)}}]},
        ],
    }  # fmt: skip
    path = jobs.home / "serve.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    say("  serve run …")
    command = (str(jobs.python.parent / "serve"), "run", str(path))
    importable = os.pathsep.join((str(jobs.checkout / "platform"), str(jobs.checkout)))
    with jobs.server(f"{url}/ready", *command, RAY_ADDRESS="local", PYTHONPATH=importable):
        body = json.dumps(QUESTION).encode()
        request = Request(f"{url}/models/mail", body, {"content-type": "application/json"})
        with urlopen(request, timeout=60) as response:
            found = json.load(response)
        with urlopen(f"{url}/models/mail", timeout=60) as response:
            about = json.load(response)
    lineage = {key: about["run"][key] for key in ("name", "identity", "data_fingerprint", "status")}
    return {"answer": found, "labels": about["labels"], "metrics": about["metrics"], **lineage}
