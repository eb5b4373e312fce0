"""Measure the overhead of more workers: the same run with 1, 2 and 4 workers on the same cores.

    python benchmarks/scaling.py --data-dir DIR --task mrpc --max-steps 20 --rounds 3

All workers together have the threads of the machine's cores (at least one each), so no speedup is
possible. The loss compared with one worker is the overhead, mostly the exchange of gradients in
each step. `bytes_per_step` is what a worker sends in a ring all-reduce: 2 (N - 1) / N times the
gradients (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms").
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare_alone import last_json
from provenance import provenance

from trainyard.config import DEFAULT_MODEL
from trainyard.models.hub import resolve_model

HERE = Path(__file__).parent


def parameters(model: str) -> int:
    """Return the number of trainable parameters."""
    from transformers import AutoModelForSequenceClassification

    built = AutoModelForSequenceClassification.from_pretrained(resolve_model(model))
    return sum(p.numel() for p in built.parameters() if p.requires_grad)


def measure(shared: list[str], count: int) -> dict[str, float]:
    """Return the samples per second of one run, and its seconds per step by account."""
    with tempfile.TemporaryDirectory() as storage:
        found = last_json(
            [str(HERE.parent / "jobs/train.py"), *shared, "--num-workers", str(count),
             "--storage-path", storage, "--run-name", "scaling",
             "--resources-per-worker", "CPU", str((os.cpu_count() or 1) / count)]
        )  # fmt: skip
        progress = json.loads((Path(storage) / "scaling/progress.json").read_text())
    accounts = ("data", "compute", "sync")
    return {
        "samples_per_second": found["train_samples_per_second"],
        **{name: progress["seconds"].get(name, 0.0) / found["steps"] for name in accounts},
    }


def main() -> None:
    """Run the rounds and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shared = [
        "--task", args.task, "--data-dir", args.data_dir, "--max-steps", str(args.max_steps),
        "--train-batch-size", "32", "--per-device-train-batch-size", "8",
    ]  # fmt: skip
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in args.workers}
    for _ in range(args.rounds):
        for count in args.workers:
            runs[count].append(measure(shared, count))
            print(count, json.dumps(runs[count][-1]), file=sys.stderr)
    numbers = parameters(DEFAULT_MODEL)
    base = statistics.median(run["samples_per_second"] for run in runs[args.workers[0]])
    result: dict[str, Any] = {
        **provenance(args.data_dir),
        "parameters": numbers,
        "workers": {
            count: {
                "speed": statistics.median(run["samples_per_second"] for run in found) / base,
                "bytes_per_step": round(2 * (count - 1) / count * 4 * numbers),
                "runs": found,
            }
            for count, found in runs.items()
        },
    }
    (HERE / "results/scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({count: found["speed"] for count, found in result["workers"].items()}))


if __name__ == "__main__":
    main()
