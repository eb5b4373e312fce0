"""Our training against the peer's, in turn, in one session: speed by --max-steps, quality without.

    python benchmarks/compare_training.py --task mrpc --data-dir DIR --max-steps 20 --pairs 3

Writes the figures of every run, medians, ratios and versions to benchmarks/results/.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from provenance import provenance

from trainyard.config import DEFAULT_MODEL
from trainyard.modeling import resolve_model
from trainyard.tasks import get_task

HERE = Path(__file__).parent


def last_json(command: list[str]) -> dict[str, Any]:
    """Run a command and read the JSON object that it prints last."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run the pairs and store what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side; seeds 0, 1, …")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--slot-size", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--name", default=None, help="of the result file")
    args = parser.parse_args()

    shared = ["--task", args.task, "--data-dir", args.data_dir]
    limit = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    runs: list[dict[str, Any]] = []
    for seed in range(args.pairs):
        with tempfile.TemporaryDirectory() as storage:
            ours = last_json(
                [str(HERE.parent / "jobs/train.py"), *shared, *limit, "--seed", str(seed),
                 "--storage-path", storage, "--num-train-epochs", str(args.epochs),
                 "--train-batch-size", str(args.batch_size), "--per-device-train-batch-size",
                 str(args.slot_size or args.batch_size), "--num-workers", str(args.num_workers)]
            )  # fmt: skip
        peer = last_json(
            [str(HERE / "reference_trainer.py"), *shared, *limit, "--seed", str(seed),
             "--model", resolve_model(DEFAULT_MODEL), "--epochs", str(args.epochs),
             "--batch-size", str(args.batch_size)]
        )  # fmt: skip
        headline = get_task(args.task).score
        run = {
            "seed": seed,
            "ours": {
                "score": ours["score"],
                "metrics": ours["metrics"],
                "samples_per_second": ours["train_samples_per_second"],
                "padding_efficiency": ours["padding_efficiency"],
                "seconds": ours["seconds"],
            },
            "peer": {
                "score": peer["metrics"][headline],
                "metrics": peer["metrics"],
                "samples_per_second": peer["train_samples_per_second"],
            },
        }
        runs.append(run)
        print(json.dumps(run), file=sys.stderr)

    def median(side: str, figure: str) -> float:
        return float(statistics.median(run[side][figure] for run in runs))

    result = {
        **provenance(args.data_dir),
        "speed_ratio": median("ours", "samples_per_second") / median("peer", "samples_per_second"),
        "speed_ratios": [
            run["ours"]["samples_per_second"] / run["peer"]["samples_per_second"] for run in runs
        ],
        "mean_score": {
            side: statistics.fmean(run[side]["score"] for run in runs) for side in ("ours", "peer")
        },
        "runs": runs,
    }
    name = args.name or f"train-{args.task}"
    (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("speed_ratio", "mean_score")}))


if __name__ == "__main__":
    main()
