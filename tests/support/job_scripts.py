"""The scripts of jobs/, called in this process: their flags, and what they do with them.

A test that goes through here depends on the command line alone, not on where the code behind it lies.
"""

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trainyard.cli import parse

ROOT = next(folder for folder in Path(__file__).parents if (folder / "jobs").is_dir())
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))

Job = Callable[[Any], Mapping[str, Any]]


def script(job: str) -> tuple[type[Any], Job]:
    """The class of flags and the function that `jobs/<job>.py` hands to `run_job`."""
    with patch("trainyard.cli.run_job") as run_job:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    (config, function), _ = run_job.call_args
    return config, function


def config_of(job: str, *flags: str) -> Any:
    """The config that `jobs/<job>.py` makes of a command line."""
    return parse(script(job)[0], flags)


def run(job: str, *flags: str) -> dict[str, Any]:
    """The last line that `jobs/<job>.py` prints for a command line, on the Ray of this process."""
    config, function = script(job)
    return dict(function(parse(config, flags)))
