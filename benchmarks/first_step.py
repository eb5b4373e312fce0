"""Measure the seconds from a command to its first optimizer step, by phase.

    python benchmarks/first_step.py --data-dir DIR --task mrpc --rounds 5

Each round trains one step in a new folder, which tokenizes the data, and then another run in the
same folder, which reuses the tokens. Writes benchmarks/results/first-step-TASK.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from compare_alone import last_json, losses_told
from provenance import provenance

HERE = Path(__file__).parent


def first_step(storage: str, name: str, task: str, data_dir: str) -> dict[str, float]:
    """Return the seconds until the first step's loss is logged, and the phases before it."""
    began = time.time()
    last_json(
        [str(HERE.parent / "jobs/train.py"), "--task", task, "--data-dir", data_dir,
         "--max-steps", "1", "--logging-steps", "1", "--storage-path", storage, "--run-name", name]
    )  # fmt: skip
    run = Path(storage) / name
    told = losses_told(run)[0].wall_time - began
    driver = json.loads((run / "run.json").read_text())["seconds"]
    worker = json.loads((run / "progress.json").read_text())["seconds"]
    known = {
        "driver_start_up": driver["start_up"],
        "tokenization": driver["tokenization"],
        "worker_start_up": worker["start_up"],
        "first_step": worker["compute"] + worker.get("data", 0.0),
    }
    # The rest: Python's imports before the run's clock, and the start of a worker's process.
    return {"seconds": told, **known, "other": told - sum(known.values())}


def main() -> None:
    """Run the rounds and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"tokenizes": [], "tokenized": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as storage:
            for name, found in runs.items():
                found.append(first_step(storage, name, args.task, args.data_dir))
                print(name, json.dumps(found[-1]), file=sys.stderr)
    medians = {
        name: {key: round(statistics.median(run[key] for run in found), 2) for key in found[0]}
        for name, found in runs.items()
    }
    result = {**provenance(args.data_dir), "medians": medians, "runs": runs}
    path = HERE / "results" / f"first-step-{args.task}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
