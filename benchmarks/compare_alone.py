"""What Ray costs a running loop: the same steps in a Ray Train worker and in a bare process, in turn.

    python benchmarks/compare_alone.py --data-dir DIR --task mrpc --max-steps 20 --pairs 3 --threads 1

Both call the same function with as many threads; only the steps are timed, not what starts them.
With as many threads as the machine has cores, Ray's own processes compete with the loop; with one
less they have a core of their own.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare_training import last_json
from provenance import provenance

from trainyard.config import TrainConfig

HERE = Path(__file__).parent


def alone(config: TrainConfig, threads: int) -> float:
    """Rows per second of the loop in this process."""
    from trainyard.data import prepare
    from trainyard.launch import worker_function
    from trainyard.modeling import build_tokenizer
    from trainyard.runs import RunFolder
    from trainyard.splits import find_splits

    folder = RunFolder(Path(config.storage_path) / "alone")
    folder.create()
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, folder.path.parent / ".cache")
    outcome = worker_function(config, splits.task, data, folder, threads=threads)()
    return float(outcome["train_samples_per_second"])


def main() -> None:
    """Run the pairs and store what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone-in", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    flags: dict[str, Any] = {
        "task": args.task, "data_dir": args.data_dir, "max_steps": args.max_steps,
        "train_batch_size": 32, "per_device_train_batch_size": 32,
    }  # fmt: skip
    if args.alone_in:
        speed = alone(TrainConfig(**flags, storage_path=args.alone_in), args.threads)
        print(json.dumps({"train_samples_per_second": speed}))
        return
    runs = []
    for _ in range(args.pairs):
        with tempfile.TemporaryDirectory() as storage:
            words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
            in_ray = last_json(
                [str(HERE.parent / "jobs/train.py"), *words, "--storage-path", storage,
                 "--resources-per-worker", "CPU", str(args.threads)]
            )  # fmt: skip
            bare = last_json([*sys.argv, "--alone-in", storage])
        runs.append({
            "in_ray": in_ray["train_samples_per_second"],
            "alone": bare["train_samples_per_second"],
        })  # fmt: skip
        print(json.dumps(runs[-1]), file=sys.stderr)
    ratios = [run["in_ray"] / run["alone"] for run in runs]
    result = {
        **provenance(args.data_dir),
        "speed_ratio": statistics.median(ratios),
        "speed_ratios": ratios,
        "runs": runs,
    }
    name = f"alone-{args.task}-{args.threads}.json"
    (HERE / "results" / name).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"speed_ratio": result["speed_ratio"], "speed_ratios": ratios}))


if __name__ == "__main__":
    main()
