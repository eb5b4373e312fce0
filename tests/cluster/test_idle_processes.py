"""What runs in a local session beside the workers of a run."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from support.tiny import write_task

from trainyard import TrainConfig

ROOT = Path(__file__).parents[2]

TOKENIZE = """
import sys, time
from pathlib import Path
import psutil
from trainyard import TrainConfig
from trainyard.cluster import ray_session
from trainyard.data import find_splits, tokenize
from trainyard.models import build_tokenizer

def who_tokenized():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "/tokenizers/" in Path(f"/proc/{process.pid}/maps").read_text():
                found.append(process.pid)
        except OSError:
            pass  # it ended meanwhile
    return found

tokenize.ROWS_HERE, seen = 500, []
load = tokenize.TableWriter.append
def append(*given):
    seen.extend(who_tokenized())
    load(*given)
tokenize.TableWriter.append = append
config = TrainConfig(task="mrpc", data_dir=sys.argv[1])
with ray_session(config):
    tokenize.prepare(find_splits(config), build_tokenizer(config), config, Path(sys.argv[2]))
    until = time.monotonic() + 30
    while left := who_tokenized():
        assert time.monotonic() < until, left
        time.sleep(0.1)
print(len(set(seen)))
"""

FIT = """
import json, sys
import psutil
import ray.util
from trainyard import TrainConfig, fit
from trainyard.cluster import ray_session

config = TrainConfig(**json.loads(sys.argv[1]))
with ray_session(config):
    fit(config)
    actors = ray.util.list_named_actors(all_namespaces=True)
    commands = [" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)]
print(json.dumps({"actors": [actor["name"] for actor in actors], "commands": commands}))
"""


def run_here(script: str, *args: str) -> str:
    """The last line that a script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.long
def test_processes_that_tokenized_end(tmp_path: Path) -> None:
    """They would keep their memory while the run trains."""
    folder = write_task(tmp_path / "large", train=1000)
    assert int(run_here(TOKENIZE, str(folder), str(tmp_path / "cache"))) > 0


@pytest.mark.long
def test_no_process_runs_that_a_run_does_not_need(small_run: TrainConfig, tmp_path: Path) -> None:
    """Each takes a second of a core to start, and its memory all the time.

    They ask an autoscaler that is not there, serve a dashboard that is off, or follow logs for nobody.
    """
    given = ((field, getattr(small_run, field.name)) for field in fields(TrainConfig))
    config = {field.name: value for field, value in given if value != field.default}
    config |= {"storage_path": str(tmp_path), "max_steps": 1}
    found = json.loads(run_here(FIT, json.dumps(config)))
    assert found["actors"] == []
    listed = "\n".join(found["commands"])
    assert "raylet" in listed
    for needless in ("dashboard.py", "monitor.py", "log_monitor.py"):
        assert needless not in listed
