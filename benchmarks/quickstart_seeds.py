"""Run `trainyard quickstart` with several seeds: the seconds of each stage, and the accuracy.

    python benchmarks/quickstart_seeds.py --seeds 42 1 2 3 4

Each run starts in an empty folder. The last stage ends when the command does. Stores
results/quickstart.json.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from markdown_tables import RESULTS
from provenance import provenance

MARK = "· "
"""Beginning of a line that names a stage."""
START = "loading torch and Ray"
"""The first line of the command names this stage; later stages have lines of their own."""


def stage_of(line: str, before: Collection[str]) -> str:
    """Return a stage's name, from its line without paths and counts.

    Ray starts twice, to train and to serve. A name that is in `before` gets "again" at its end.
    """
    name = re.split(r" quickstart:|, and ", line.removeprefix(MARK).strip())[0]
    return f"{name} again" if name in before else name


def measure(seed: int) -> dict[str, Any]:
    """Run the command; return the seconds of its stages and of the whole, and the score.

    Raises:
        SystemExit: The command failed.
    """
    trainyard = Path(sys.executable).parent / "trainyard"
    command = [str(trainyard), "quickstart", "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "out").open("w+") as out:
        began = time.monotonic()
        started = {START: began}
        running = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if line.startswith(MARK):
                started[stage_of(line, started)] = time.monotonic()
        if running.wait():
            raise SystemExit(f"{' '.join(command)} failed:\n{''.join(lines[-40:])}")
        ended = time.monotonic()
        out.seek(0)
        result = json.loads(out.readlines()[-1])
    ends = [*list(started.values())[1:], ended]
    return {
        "seed": seed,
        "accuracy": result["metrics"]["validation"]["accuracy"],
        "seconds": round(ended - began, 1),
        "stages": {
            name: round(end - begin, 1)
            for (name, begin), end in zip(started.items(), ends, strict=True)
        },
    }


def main() -> None:
    """Run the seeds and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2, 3, 4])
    runs = []
    for seed in parser.parse_args().seeds:
        runs.append(measure(seed))
        print(json.dumps(runs[-1]), file=sys.stderr)
    medians = {
        stage: statistics.median(run["stages"][stage] for run in runs)
        for stage in runs[0]["stages"]
    }
    result = {**provenance(), "median_seconds_by_stage": medians, "runs": runs}
    (RESULTS / "quickstart.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
