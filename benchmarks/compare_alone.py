"""Measure Ray's overhead: the same steps in a Ray Train worker and in a bare process, in turn.

    python benchmarks/compare_alone.py --data-dir DIR --task mrpc --max-steps 60 --pairs 3 --threads 1

Both call the same function with the same number of threads. Steps before `--skip` are not timed,
since Ray's own processes are still starting. If `--threads` is the number of cores, Ray's own
processes compete with the loop; with one thread less, a core is left for them.
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

from trainyard.config import TrainConfig

HERE = Path(__file__).parent
BATCH = 32


def last_json(command: list[str]) -> dict[str, Any]:
    """Run a command and read the JSON object that it prints last."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def losses_told(run: Path) -> list[Any]:
    """Read a run's losses from its TensorBoard files, each with its `step` and `wall_time`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return list(EventAccumulator(str(run / "tensorboard")).Reload().Scalars("train/loss"))


def once_running(run: Path, skip: int) -> float:
    """Return the rows per second from step `skip` on."""
    counted = [event for event in losses_told(run) if event.step >= skip]
    seconds = counted[-1].wall_time - counted[0].wall_time
    return float((counted[-1].step - counted[0].step) * BATCH / seconds)


def alone(config: TrainConfig, threads: int) -> Path:
    """Run the loop in this process; return the run's folder."""
    from trainyard.data.splits import find_splits
    from trainyard.data.tokenize import prepare
    from trainyard.models.build import build_tokenizer
    from trainyard.storage.folder import RunFolder
    from trainyard.training.driver.restarts import worker_function

    folder = RunFolder(Path(config.storage_path) / "alone")
    folder.create()
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, folder.path.parent / ".cache")
    worker_function(config, splits.task, data, folder, threads=threads)()
    return folder.path


def main() -> None:
    """Run the pairs and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--skip", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone-in", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    flags: dict[str, Any] = {
        "task": args.task, "data_dir": args.data_dir, "max_steps": args.max_steps,
        "train_batch_size": BATCH, "per_device_train_batch_size": BATCH, "run_name": "in_ray",
    }  # fmt: skip
    if args.alone_in:
        run = alone(TrainConfig(**flags, storage_path=args.alone_in), args.threads)
        print(json.dumps({"run": str(run)}))
        return
    runs = []
    for _ in range(args.pairs):
        with tempfile.TemporaryDirectory() as storage:
            words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
            last_json(
                [str(HERE.parent / "jobs/train.py"), *words, "--storage-path", storage,
                 "--resources-per-worker", "CPU", str(args.threads)]
            )  # fmt: skip
            last_json([*sys.argv, "--alone-in", storage])
            runs.append(
                {
                    side: once_running(Path(storage) / side, args.skip)
                    for side in ("in_ray", "alone")
                }
            )
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
