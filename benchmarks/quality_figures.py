"""Compare our suite with Hugging Face's `Trainer` (the peer): scores by seed, difference of means.

    python jobs/glue.py --data-dir glue --tasks cola mrpc rte --seeds 0 1 2 --run-name suite
    python benchmarks/reference_trainer.py --task rte --data-dir glue --seed 0 ... > peer/rte-0.json
    python benchmarks/quality_figures.py runs/suite/glue.json peer benchmarks/results/quality.json

Stored results of other tasks, and of other seeds of the peer, are kept, since the suite takes hours
and can be run in parts.

The peer is scored after its last epoch, and so is ours in the difference. Choosing the best epoch
on the scored rows, as our runs do, biases the score upward. `ours` is the score of the best epoch.

The interval of a difference is Welch's (SciPy's `ttest_ind` without equal variances). It covers the
choice of seeds, on the same rows. Seeds are not paired, since each side draws other numbers from a
seed.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def peers(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the JSON lines that the peer printed, by task and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text().splitlines()[-1])
        found[run["task"]][run["seed"]] = run
    return found


def last_scores(run: Path) -> dict[str, float]:
    """Return the scores of a run after its last epoch, by split and metric."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        f"{line['split']} {metric}": value  # later lines replace earlier ones
        for line in lines
        if "split" in line
        for metric, value in line["metrics"].items()
    }


def difference(ours: list[float], peer: list[float]) -> dict[str, Any]:
    """Return our mean minus the peer's; with two seeds or more each, also its 95 % interval."""
    from scipy import stats

    found: dict[str, Any] = {"difference": sum(ours) / len(ours) - sum(peer) / len(peer)}
    if min(len(ours), len(peer)) > 1:
        interval = stats.ttest_ind(ours, peer, equal_var=False).confidence_interval(0.95)
        found["interval"] = [float(interval.low), float(interval.high)]
    return found


def main() -> None:
    """Merge both into the stored results, store and print these."""
    table, folder, out = map(Path, sys.argv[1:4])
    suite = json.loads(table.read_text())
    tasks: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for row in suite["tasks"]:
        if not row["seeds"]:
            continue
        before = tasks.get(row["task"], {"metrics": {}, "peer_versions": None})
        names = {f"{found['split']} {found['metric']}": found for found in row["metrics"]}
        tasks[row["task"]] = {
            "recipe": {k: v for k, v in row["recipe"].items() if k not in ("model", "source")},
            "versions": suite["versions"],
            "peer_versions": before["peer_versions"],
            "metrics": {
                name: {
                    "ours": found["values"],
                    "ours_last": {
                        seed: last_scores(table.parent / f"{row['task']}-seed-{seed}")[name]
                        for seed in found["values"]
                    },
                    "rows_interval": found["rows_interval"],
                    "peer": before["metrics"].get(name, {"peer": {}})["peer"],
                }
                for name, found in names.items()
            },
        }
    for task, runs in peers(folder).items():
        for name, figures in tasks[task]["metrics"].items():
            figures["peer"] |= {
                str(seed): run["metrics"][name.split(" ", 1)[1]] for seed, run in runs.items()
            }
        tasks[task]["peer_versions"] = next(iter(runs.values()))["versions"]
    for task, found in tasks.items():
        for name, figures in found["metrics"].items():
            if figures["peer"] and (last := figures.get("ours_last")):
                figures |= difference([*last.values()], [*figures["peer"].values()])
            print(json.dumps({"task": task, "metric": name, **figures}))
    out.write_text(json.dumps(tasks, indent=2) + "\n")


if __name__ == "__main__":
    main()
