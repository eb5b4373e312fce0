"""The multi-host test: a cluster of five hosts on this machine, and what can happen to it.

    make test-cluster            or      sudo python tests/hosts/run.py --only power-off

Needs root. Every scenario must end with the weights of the undisturbed run, equal to the bit where
the number of workers is the same. Times go to benchmarks/results/cluster.json with --json.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosts import end_in_order, missing
from ray_hosts import RayCluster, make_root_only
from scenarios import SCENARIOS, logged
from workload import STEPS, flags_for, weights, write_workload

WORKERS = 3
BASELINE = "undisturbed"
"""The run by two workers that all others must equal, also those with one, and with first two, then one."""


def main() -> None:
    """Run the scenarios; exit with 1 when one did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument(
        "--folder", type=Path, help="keep everything here; finished baselines are used"
    )
    parser.add_argument("--json", type=Path, help="merge the results into this file")
    parser.add_argument("--steps", type=int, default=STEPS, help="length of the run")
    args = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return
    end_in_order()
    results: dict[str, Any] = {}
    with folder(args.folder) as where:
        make_root_only(where)
        write_workload(where / "shared")
        names = list(dict.fromkeys([BASELINE, *args.only]))
        with RayCluster(where, WORKERS) as cluster:
            for name in names:
                results[name] = attempt(cluster, name, args.steps)
                if args.json:
                    merge(args.json, args.steps, {name: results[name]})
    print(json.dumps(results, indent=2))
    raise SystemExit(0 if all(found["ok"] for found in results.values()) else 1)


def attempt(cluster: RayCluster, name: str, steps: int) -> dict[str, Any]:
    """One scenario and its verdict."""
    print(f"{name} …", file=sys.stderr, flush=True)
    started = time.monotonic()
    runs = cluster.folder / "shared/runs"
    found: dict[str, Any] = {"ok": False}
    try:
        alone = name.endswith("-alone")
        flags = flags_for(cluster.folder / "shared", steps, alone=alone)
        found |= SCENARIOS[name](cluster, name, flags)
        found |= compare(runs / name, runs / BASELINE, steps)
        found["ok"] = True
    except Exception as error:  # the others are still to be tried
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"[:500]
    found["seconds"] = round(time.monotonic() - started, 1)
    print(f"  {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def compare(run: Path, undisturbed: Path, steps: int) -> dict[str, Any]:
    """Compare weights, optimizer state and every logged line with the undisturbed run's.

    All equal to the bit, whatever number of workers trained.
    """
    import numpy as np

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished", record["status"]
    ours, theirs = weights(run, steps), weights(undisturbed, steps)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs), "other weights"
    assert logged(run) == logged(undisturbed), "metrics.jsonl differs from the undisturbed run's"
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    kept = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert left == kept, (left, kept)
    assert not [name for name in left if name.startswith(".")], left
    return {"weights_equal": True}


@contextlib.contextmanager
def folder(kept: Path | None) -> Iterator[Path]:
    """The folder of everything, deleted afterwards unless it was given."""
    if kept is not None:
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(
        prefix="trainyard-cluster-", ignore_cleanup_errors=True
    ) as made:
        yield Path(made)


def merge(path: Path, steps: int, results: dict[str, Any]) -> None:
    """Add results to a JSON file, with what they were made by."""
    from trainyard.storage.software import versions

    kept = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    record = {
        "command": f"python tests/hosts/run.py --steps {steps}",
        "versions": versions(),
        "what": "seconds from the fault until the driver knew it (detected) and until another "
        "attempt trained (recovered); five hosts in namespaces of one machine with two cores",
        "scenarios": {**kept, **results},
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
