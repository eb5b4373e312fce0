"""Make an upgrade set with older code: python make_upgrade_set.py CHECKOUT SET.

CHECKOUT is a checkout of the old commit, with its Python in CHECKOUT/.venv unless --python names
another. The set works only at the path and on the kind of machine where it was made.
"""

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.s3_server import serve
from support.tiny import WORDS, write_task, write_tiny_model
from support.upgrade_set import Jobs, UpgradeError, commands_at, copy_at_home, say, take_steps


def make(checkout: Path, python: Path, folder: Path) -> None:
    """Make the set, if kept/ does not exist yet, and compute its reference."""
    home = folder / "home"
    commands = commands_at(home)
    if not (folder / "kept").exists():
        home.mkdir(parents=True)
        write_inputs(home)
        write_runs(checkout, python, home, commands)
        home.rename(folder / "kept")
    record: dict[str, Any] = {"home": str(home), "code": commit(checkout), "commands": commands}
    say("the reference:")
    with copy_at_home(folder) as copy:
        record["reference"], failures = take_steps(checkout, python, copy, commands)
    if failures:
        raise UpgradeError("\n".join(failures))
    (folder / "set.json").write_text(json.dumps(record, indent=1))


def write_inputs(home: Path) -> None:
    write_tiny_model(home / "model")
    for task in ("mrpc", "rte"):
        write_task(home / "data", task)
    with (home / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "other"))
        writer.writerows((" ".join(WORDS[i : i + 5]), WORDS[2 * i]) for i in range(20))
    (home / "bucket").mkdir()


def write_runs(checkout: Path, python: Path, home: Path, commands: dict[str, list[str]]) -> None:
    with serve(home / "bucket") as endpoint:
        jobs = Jobs(checkout, python, home, endpoint)
        say("the set:")
        for name in ("finished", "sweep", "suite"):
            jobs.run(*commands[name])
        for name, folder, how in (
            ("stopped", "runs/stopped", signal.SIGTERM),
            ("killed", "runs/killed", signal.SIGKILL),
            ("bucket", "scratch/*/bucket", signal.SIGTERM),
        ):
            jobs.interrupt(partial(step, home, folder), how, *commands[name])
    shutil.rmtree(home / "scratch")  # runs in a bucket must resume without it


def step(home: Path, run: str) -> int:
    """Read the last step from a run's progress.json; 0 before it exists."""
    for path in home.glob(f"{run}/progress.json"):
        return int(json.loads(path.read_text()).get("step", 0))
    return 0


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--python", type=Path)
    given = parser.parse_args()
    checkout = given.checkout.absolute()
    try:
        make(checkout, given.python or checkout / ".venv/bin/python", given.set.absolute())
    except UpgradeError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
