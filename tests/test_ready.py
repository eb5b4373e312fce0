"""The benchmark of start-up: points in time of a stand-in for `trainyard serve`, and its table."""

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ready
import result_tables

COMMAND = """#!{python}
import os, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

assert os.listdir() == []
open({note!r}, "w").write(str(os.getpid()) + " " + " ".join(sys.argv[1:]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "gcs_server"])
began = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        found = time.monotonic() - began > 0.3
        self.send_response(200 if found else 503)
        self.end_headers()
        self.wfile.write(b'{{"load_seconds": 0.25}}')

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if time.monotonic() - began > 0.9 else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
threading.Timer(1.2, lambda: print("ready: http://…", flush=True)).start()
try:
    server.serve_forever()
except KeyboardInterrupt:
    child.terminate()
    child.wait()
"""


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in next to the interpreter; return the file of its process id and flags."""
    command, found = tmp_path / "trainyard", tmp_path / "note"
    command.write_text(COMMAND.format(python=sys.executable, note=str(found)))
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return found


def test_the_points_of_a_command_are_in_order_and_it_ends_with_its_processes(note: Path) -> None:
    points = ready.first_answer("/models/bench", "torch")
    process, *flags = note.read_text().split()
    assert flags[:4] == ["serve", "--model-name-or-path", "/models/bench", "--engine"]
    assert 0 <= points["ray"] <= points["gateway"] < points["seconds"] < points["banner"] < 30
    assert points["load_seconds"] == 0.25
    assert not psutil.pid_exists(int(process))
    assert not [one for one in psutil.Process().children() if "trainyard" in str(one.cmdline())]


def test_a_command_that_fails_ends_the_benchmark_with_its_words(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note.with_name("trainyard").write_text("#!/bin/sh\necho no such model\nexit 2\n")
    monkeypatch.setattr(ready, "POLL_SECONDS", 0.01)
    with pytest.raises(SystemExit, match=r"/health does not answer:\nno such model"):
        ready.first_answer("/models/bench", "torch")


def test_the_table_has_the_points_that_every_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def table(*runs: dict[str, float]) -> str:
        model = {"parameters": 23e6, "median_seconds": 0.0, "runs": runs}
        monkeypatch.setattr(result_tables, "load", lambda _: {"MiniLM": model})
        return result_tables.start_up()

    before: dict[str, Any] = {"seconds": 20.6, "load_seconds": 3.1}
    assert "| MiniLM | 23 | 20.6 | 3.1 |" in table(before)
    now = {**before, "ray": 1.0, "replica": 4.0, "gateway": 5.0, "banner": 21.0}
    assert "| MiniLM | 23 | 1.0 | 4.0 | 5.0 | 20.6 | 3.1 |" in table(now)
    assert "| MiniLM | 23 | 20.6 | 3.1 |" in table(before, now)
