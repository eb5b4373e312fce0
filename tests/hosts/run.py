"""The multi-host test: a cluster of five hosts on this machine, and what can happen to it.

    make test-cluster            or      sudo python tests/hosts/run.py --only power-off

Needs root. Every scenario must end with the weights of the undisturbed run of its strategy, bit for
bit. Times go to benchmarks/results/cluster.json with --json.
"""

import argparse
import contextlib
import json
import math
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hosts import end_in_order, missing
from ray_hosts import RayCluster, make_root_only, read_json, run_folder
from scenarios import EARLY, LONG, LONG_SECONDS, SCENARIOS, logged, undisturbed
from workload import (
    BATCH,
    STEPS,
    flags_for,
    moments,
    strategy_of,
    weights,
    write_workload,
)

WORKERS = 3
ROUNDED = 500
"""Steps of a long run are a multiple of it, so that a kept baseline can serve again."""
SHARDED_STEPS = 300
"""Steps of runs by other strategies than ddp, and of ddp's that they are compared with."""
TOLERANCE = 1e-6
"""Greatest difference of a weight, or of a logged loss, between ddp and another strategy."""


def main() -> None:
    """Run the scenarios; exit with 1 when one did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument(
        "--folder", type=Path, help="keep everything here; finished baselines are used"
    )
    parser.add_argument("--json", type=Path, help="merge the results into this file")
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="length of most runs; some need longer ones, and those that shard weights are short",
    )
    args = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return
    end_in_order()
    results: dict[str, Any] = {}
    with folder(args.folder) as where:
        make_root_only(where)
        write_workload(where / "shared")
        with RayCluster(where, WORKERS) as cluster:
            for name, steps in lengths(args.only, args.steps, where / "shared/runs"):
                if name in results:  # a baseline of the same length
                    continue
                results[name] = attempt(cluster, name, steps)
                if args.json:
                    merge(args.json, args.steps, {name: results[name]})
    print(json.dumps(results, indent=2))
    raise SystemExit(0 if all(found["ok"] for found in results.values()) else 1)


def lengths(names: Sequence[str], steps: int, runs: Path) -> Iterator[tuple[str, int]]:
    """Each scenario and its steps, after the baselines that it is compared with.

    The length of long runs is by the measured step time.
    """
    plain, sharded = (
        [name for name in names if (strategy_of(name) is not None) == shards]
        for shards in (False, True)
    )
    if plain:
        yield baseline(steps), steps
    yield from ((name, steps) for name in plain if name not in LONG)
    if sharded:
        yield baseline(SHARDED_STEPS), SHARDED_STEPS
    for name in sharded:
        yield baseline(SHARDED_STEPS, strategy_of(name)), SHARDED_STEPS
        yield name, SHARDED_STEPS
    if long := [name for name in plain if name in LONG]:
        result = read_json(runs / baseline(steps) / "run.json").get("result") or {}
        speed = result.get("train_samples_per_second", 0)  # 0: it failed, and so do the long ones
        more = max(steps, math.ceil((EARLY + LONG_SECONDS * speed / BATCH) / ROUNDED) * ROUNDED)
        yield baseline(more), more
        yield from ((name, more) for name in long)


def baseline(steps: int, strategy: str | None = None) -> str:
    """Name of the run by two workers that all others of `steps` must equal, whoever trains them."""
    return f"undisturbed-{steps}-{strategy}" if strategy else f"undisturbed-{steps}"


def attempt(cluster: RayCluster, name: str, steps: int) -> dict[str, Any]:
    """One scenario, which begins on a whole cluster, and its verdict."""
    print(f"{name} …", file=sys.stderr, flush=True)
    started = time.monotonic()
    found: dict[str, Any] = {"ok": False, "steps": steps}
    try:
        cluster.bring_back()
        run, strategy = run_folder(cluster, name), strategy_of(name)
        if name in SCENARIOS and run.exists():  # of an earlier test in a kept folder
            shutil.rmtree(run)
        flags = flags_for(cluster.folder / "shared", name, steps)
        found |= SCENARIOS.get(name, undisturbed)(cluster, name, flags)
        found |= compare(run, run_folder(cluster, baseline(steps, strategy)), steps)
        if strategy is not None:
            found |= compare_with_ddp(run, run_folder(cluster, baseline(steps)), steps)
        found["ok"] = True
    except Exception as error:  # the others are still to be tried
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"[:500]
    found["seconds"] = round(time.monotonic() - started, 1)
    print(f"  {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def compare(run: Path, other: Path, steps: int) -> dict[str, Any]:
    """Compare weights, optimizer state and every logged line with the undisturbed run's.

    All equal to the bit, whatever number of workers trained.
    """
    import numpy as np

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished", record["status"]
    for kind, read in (("weights", weights), ("optimizer state", moments)):
        ours, theirs = read(run, steps), read(other, steps)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs), f"other {kind}"
    assert logged(run) == logged(other), "metrics.jsonl differs from the undisturbed run's"
    left, kept = checkpoints(run), checkpoints(other)
    assert left == kept, (left, kept)
    return {"weights_equal": True}


def compare_with_ddp(run: Path, ddp: Path, steps: int) -> dict[str, Any]:
    """Compare weights and logged losses with those of ddp, within TOLERANCE."""
    import numpy as np

    ours, theirs = weights(run, steps), weights(ddp, steps)
    assert ours.keys() == theirs.keys()
    difference = max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)
    losses, expected = (
        np.array([line["loss"] for line in logged(one) if "loss" in line]) for one in (run, ddp)
    )
    of_losses = float(np.abs(losses - expected).max())
    assert max(difference, of_losses) <= TOLERANCE, (difference, of_losses)
    return {"difference_to_ddp": difference, "difference_of_losses_to_ddp": of_losses}


def checkpoints(run: Path) -> list[str]:
    """Checkpoints and leftovers of a run; in a bucket each has the id of its attempt in its name."""
    files = (path for path in (run / "checkpoints").glob("*/*") if path.is_file())
    return sorted({re.sub(r"^(step-\d+)-\w{8}$", r"\1", path.parent.name) for path in files})


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
