"""Train one config on 1, 2 and 4 workers, and once killed and resumed; store the loss curves.

    python benchmarks/loss_curves.py && python docs/generate.py

The first writes results/loss-curves.json, the second draws it, docs/assets/loss-curves.svg.
SIGKILL ends the driver and the workers of the killed run twice, and the same command resumes it.
Weights are compared by the hash of model.safetensors in the newest checkpoint.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import provenance

HERE = Path(__file__).parent
RESULT = HERE / "results" / "loss-curves.json"

FLAGS = ("--task", "demo", "--max-steps", "60", "--train-batch-size", "32",
         "--per-device-train-batch-size", "8", "--learning-rate", "1e-4", "--logging-steps", "1",
         "--save-steps", "10", "--resources-per-worker", "CPU", "0.5")  # fmt: skip
KILLS = (17, 41)
"""Steps after which the killed run loses its processes."""


def train(storage: str, name: str, workers: int) -> subprocess.Popen[bytes]:
    """Start a run in a new session."""
    command = [sys.executable, str(HERE.parent / "jobs" / "train.py"), *FLAGS,
               "--num-workers", str(workers), "--storage-path", storage, "--run-name", name]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, start_new_session=True, env=environment)


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Send SIGKILL to a run's driver and its workers once `step` is logged."""
    import psutil

    while not any(line["step"] >= step for line in losses(run)):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with status {process.returncode} before step {step}")
        time.sleep(0.2)
    doomed = [child for child in psutil.Process(process.pid).children(recursive=True)
              if "TrainWorker" in child.name() or "TrainWorker" in " ".join(child.cmdline())]  # fmt: skip
    for child in doomed:
        child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait()


def losses(run: Path) -> list[dict[str, Any]]:
    """Read the logged losses of a run."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]


def weights(run: Path) -> str:
    """Hash the weights of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def measure() -> dict[str, Any]:
    """Train all four runs."""
    runs = {}
    with tempfile.TemporaryDirectory() as storage:
        for name, workers, kills in (("1 worker", 1, ()), ("2 workers", 2, ()), ("4 workers", 4, ()),
                                     ("2 workers, killed twice", 2, KILLS)):  # fmt: skip
            folder = name.replace(" ", "-").replace(",", "")
            run = Path(storage) / folder
            for step in kills:
                kill_after(train(storage, folder, workers), run, step)
            if train(storage, folder, workers).wait():
                raise SystemExit(f"{name}: the run failed")
            runs[name] = {"losses": losses(run), "weights": weights(run)}
    equal = len({run["weights"] for run in runs.values()}) == 1
    return {
        **provenance(),
        "flags": list(FLAGS),
        "kills": list(KILLS),
        "equal": equal,
        "runs": runs,
    }


if __name__ == "__main__":
    RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
