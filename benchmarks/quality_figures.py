"""Our suite beside the peer's `Trainer`, task by task: scores by seed and the difference of their means.

    python jobs/glue.py --data-dir glue --tasks cola mrpc rte --seeds 0 1 2 --run-name suite
    python benchmarks/reference_trainer.py --task rte --data-dir glue --seed 0 ... > peer/rte-0.json
    python benchmarks/quality_figures.py runs/suite/glue.json peer benchmarks/results/quality.json

Several tables may stand before the peer's folder, of suites that share no task.

The interval of a difference is Welch's t (SciPy's `ttest_ind` without equal variances): it says what
other seeds could have given, on the same rows. Seeds are not paired, as they mean other draws to each.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def peers(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What the peer printed, by task and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text().splitlines()[-1])
        found[run["task"]][run["seed"]] = run
    return found


def difference(ours: list[float], peer: list[float]) -> dict[str, Any]:
    """Ours less the peer's, of the means, and its 95 % interval where both have two seeds or more."""
    from scipy import stats

    found: dict[str, Any] = {"difference": sum(ours) / len(ours) - sum(peer) / len(peer)}
    if min(len(ours), len(peer)) > 1:
        interval = stats.ttest_ind(ours, peer, equal_var=False).confidence_interval(0.95)
        found["interval"] = [float(interval.low), float(interval.high)]
    return found


def main() -> None:
    """Join the two and store what they say."""
    *tables, folder, out = map(Path, sys.argv[1:])
    suites = [json.loads(table.read_text()) for table in tables]
    peer = peers(folder)
    tasks = {}
    for row in (row for suite in suites for row in suite["tasks"] if row["seeds"]):
        runs = peer.get(row["task"], {})
        metrics = {}
        for metric in row["metrics"]:
            name, values = metric["metric"], metric["values"]
            theirs = {str(seed): run["metrics"][name] for seed, run in runs.items()}
            metrics[f"{metric['split']} {name}"] = {
                "ours": values,
                "rows_interval": metric["rows_interval"],
                "peer": theirs,
                **(difference([*values.values()], [*theirs.values()]) if values and theirs else {}),
            }
        tasks[row["task"]] = {
            "recipe": {k: v for k, v in row["recipe"].items() if k not in ("model", "source")},
            "metrics": metrics,
        }
    result = {
        "versions": [suite["versions"] for suite in suites],
        "peer_versions": next((r["versions"] for runs in peer.values() for r in runs.values()), None),
        "tasks": tasks,
    }  # fmt: skip
    out.write_text(json.dumps(result, indent=2) + "\n")
    for task, found in tasks.items():
        for name, figures in found["metrics"].items():
            print(json.dumps({"task": task, "metric": name, **figures}))


if __name__ == "__main__":
    main()
