"""Figures of a finished sweep: its cost relative to training all trials to their end, its verdict.

    python jobs/tune.py --task mrpc --data-dir glue --run-name mrpc-asha ...
    python benchmarks/sweep_figures.py runs/mrpc-asha benchmarks/results/sweep-mrpc.json

Cost is counted in optimizer steps, which do not depend on the machine's load, and in seconds of
training. `startup_seconds` is the time from the start of a trial in a process to its first step:
data, model and, for the first trial of a process, imports. Neither includes the wait for the
scheduler's decision.
"""

import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

FOLDERS = ("data_dir", "storage_path")
UNSET: tuple[Any, ...] = (None, [], False)


def figures(sweep: Path) -> dict[str, Any]:
    """Return the figures for the docs."""
    known = json.loads((sweep / "sweep.json").read_text())
    trials = []
    for path in sorted((sweep / "trials").glob("*/run.json")):
        run = json.loads(path.read_text())
        progress = json.loads((path.parent / "progress.json").read_text())
        trials.append({**run, **progress})
    done = sum(trial["step"] for trial in trials)
    full = sum(trial["last_step"] for trial in trials)
    startup = [trial["startup_seconds"] for trial in trials]
    # The first trial of each process pays for the process: importing torch and transformers.
    reused = sorted(startup)[: len(startup) - known["max_concurrent_trials"]]
    confirmation = known["confirmation"]
    return {
        "sweep": known["name"],
        "config": {k: v for k, v in known["config"].items() if k not in FOLDERS and v not in UNSET},
        "space": known["space"],
        "trials": known["result"]["trials"],
        "steps": done,
        "steps_of_all_trials_in_full": full,
        "cost": round(done / full, 3),
        "loop_seconds": round(sum(trial["loop_seconds"] for trial in trials), 1),
        "startup_seconds": {
            "first in its process": sorted(startup)[len(reused) :],
            "in a process that is there": reused,
            "median in a process that is there": statistics.median(reused),
        },
        "verdict": known["verdict"],
        "winner": {k: confirmation["winner"][k] for k in ("trial", "hyperparameters", "scores",
                                                          "mean", "corrected", "interval")},
        "default": {k: confirmation["default"][k] for k in ("hyperparameters", "scores", "mean",
                                                            "interval")},
        "difference": confirmation["difference"],
        "seeds": confirmation["seeds"],
        "seconds": known["seconds"],
        "concurrent": known["max_concurrent_trials"],
        "versions": known["versions"],
        "machine": f"{platform.machine()}, {known['resources_per_trial']} for each trial",
    }  # fmt: skip


if __name__ == "__main__":
    found = figures(Path(sys.argv[1]))
    text = json.dumps(found, indent=2) + "\n"
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text)
    print(text)
