"""Train by every strategy and precision on two CPU processes, and log the differences from ddp.

    python benchmarks/strategy_matrix.py [--only NAME ...] [--results FOLDER]

The model is tiny and has random weights; ZeRO-3 shards all of them, and ZeRO-2 reduces several
buckets. Each run is repeated, cut off and resumed, also by one process and by four. Checkpoints are
loaded with plain transformers. The whole takes about ten minutes on two idle cores. `--only`
replaces only the named rows; ddp in their precisions runs too. The exit status is 1 if a resumed run
ends with other bits. `tests/support/strategy_runs.py` does the work.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_tables import RESULTS
from provenance import provenance

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.lifted import lift_guards  # noqa: E402
from support.ranks import Attempt, run_ranks  # noqa: E402
from support.small_run import small_config  # noqa: E402
from support.strategy_runs import KINDS, LAST_STEP, PRECISIONS, Row, Runs, two_workers  # noqa: E402
from support.tiny import write_task, write_tiny_model  # noqa: E402

WORLDS = (1, 4)
"""Numbers of workers that resume the runs of two."""
LONGEST = 60
"""Seconds for an attempt, also on a busy machine."""
ROWS = {row.name: row for row in (Row(k, p, WORLDS) for p in PRECISIONS for k in KINDS)}


def measure(rows: Sequence[Row], folder: Path) -> dict[str, dict[str, Any]]:
    """Run rows, which include ddp in their precisions; return the results by name.

    Differences are the largest ones of a loss, and of a final weight. `moved` holds those of the
    losses of a run that one or four workers resume, to those of the run of two.

    Raises:
        AssertionError: A run failed, or transformers does not find the weights of its checkpoint.
    """
    small = small_config(write_tiny_model(folder / "model"), write_task(folder / "data"))
    base = two_workers(small, folder / "runs")
    attempts: dict[int, list[Attempt]] = {2: [], **{world: [] for world in WORLDS}}
    for row in rows:
        for world, more in row.attempts(base).items():
            attempts[world] += more
    for world, each in attempts.items():
        print(f"{len(each)} attempts of {world} processes", flush=True)
        run_ranks(world, each, folder / f"ranks-{world}", LONGEST * len(each))
    runs = Runs(base.storage_path)
    return {row.name: results(runs, row) for row in rows}


def results(runs: Runs, row: Row) -> dict[str, Any]:
    """Compare the runs of a row with each other and with those of ddp."""
    name, ddp = row.name, f"ddp-{row.precision}"
    return {
        "loss_difference": runs.loss_difference(name, ddp),
        "weight_difference": runs.weight_difference(name, ddp),
        "resumed": runs.same_bits(f"{name}-cut", name),
        "moved": {world: runs.loss_difference(f"{name}-{world}", name) for world in WORLDS},
        "skipped_steps": runs.steps(name)[-1].get("skipped_steps"),
        "loaded": type(runs.load(name)).__name__,
    }


def main() -> None:
    """Run the rows and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    lift_guards(pytest.MonkeyPatch())
    needed = {*args.only, *(f"ddp-{ROWS[name].precision}" for name in args.only)}
    with tempfile.TemporaryDirectory() as folder:
        found = measure([row for name, row in ROWS.items() if name in needed], Path(folder))
    log = args.results / "strategy-matrix.json"
    before = json.loads(log.read_text())["rows"] if log.exists() else {}
    rows = {name: {**before, **found}[name] for name in ROWS if name in {*before, *found}}
    log.write_text(json.dumps({**provenance(), "steps": LAST_STEP, "rows": rows}, indent=1) + "\n")
    sys.exit(not all(row["resumed"] for row in found.values()))


if __name__ == "__main__":
    main()
