"""Train one config on 1, 2 and 4 workers, and once killed and resumed; draw the loss curves.

    python benchmarks/loss_curves.py            # trains, writes results/loss-curves.json and the figure
    python benchmarks/loss_curves.py --draw     # draws the stored result again

SIGKILL ends the driver and the workers of the killed run twice, and the same command resumes it.
Weights are compared by the hash of model.safetensors in the newest checkpoint.
"""

import argparse
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

import altair as alt
from provenance import provenance

HERE = Path(__file__).parent
RESULT = HERE / "results" / "loss-curves.json"
FIGURE = HERE.parent / "docs" / "assets" / "loss-curves.svg"

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


def draw(result: dict[str, Any]) -> None:
    """Draw the curves over each other, the widest first, so that all of them show."""
    names = list(result["runs"])
    colors = alt.Scale(domain=names, range=["#c6dbef", "#6baed6", "#08519c", "#ff7f0e"])
    curves = [
        alt.Chart({"values": [{"run": name, **point} for point in result["runs"][name]["losses"]]})
        .mark_line(strokeWidth=width, strokeJoin="round", strokeCap="round")
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", scale=colors, sort=names, title=None),
        )
        for name, width in zip(names, (10, 6, 3, 1.2), strict=True)
    ]
    kills = (
        alt.Chart({"values": [{"step": step} for step in result["kills"]]})
        .mark_rule(strokeDash=[4, 4], color="#888888")
        .encode(x="step:Q")
    )
    labels = kills.mark_text(text="killed", dx=4, align="left", color="#666666").encode(
        y=alt.value(8)
    )
    chart = (
        alt.layer(kills, *curves, labels)
        .properties(width=640, height=240, background="white")
        .configure_view(stroke=None)
        .configure_legend(orient="top", symbolStrokeWidth=6, symbolType="stroke", labelLimit=300)
    )
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(FIGURE))


def main() -> None:
    """Train unless --draw is given; draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true")
    if not parser.parse_args().draw:
        RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    draw(json.loads(RESULT.read_text()))


if __name__ == "__main__":
    main()
