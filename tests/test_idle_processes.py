"""What a local session leaves running while a run trains."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import write_task

ROOT = Path(__file__).parents[1]

TOKENIZE = """
import sys, time
from pathlib import Path
import psutil
from trainyard import TrainConfig, data
from trainyard.cluster import ray_session
from trainyard.modeling import build_tokenizer
from trainyard.splits import find_splits

def who_tokenized():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "/tokenizers/" in Path(f"/proc/{process.pid}/maps").read_text():
                found.append(process.pid)
        except OSError:
            pass  # it ended meanwhile
    return found

data.ROWS_HERE, seen = 500, []
load = data.TableWriter.append
def append(*given):
    seen.extend(who_tokenized())
    load(*given)
data.TableWriter.append = append
config = TrainConfig(task="mrpc", data_dir=sys.argv[1])
with ray_session(config):
    data.prepare(find_splits(config), build_tokenizer(config), config, Path(sys.argv[2]))
    until = time.monotonic() + 30
    while left := who_tokenized():
        assert time.monotonic() < until, left
        time.sleep(0.1)
print(len(set(seen)))
"""


def test_processes_that_tokenized_end(tmp_path: Path) -> None:
    """They would keep their memory while the run trains."""
    folder = write_task(tmp_path / "large", train=1000)
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(folder), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 0
