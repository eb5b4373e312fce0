"""Call the scripts of jobs/ in this process.

Tests that use it depend on the command line only, not on the modules behind it.
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
    """Return the config class and the function that `jobs/<job>.py` passes to `run_job`."""
    with patch("trainyard.cli.run_job") as run_job:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    (config, function), _ = run_job.call_args
    return config, function


def config_of(job: str, *flags: str) -> Any:
    """Parse the command line of `jobs/<job>.py`."""
    return parse(script(job)[0], flags)


def run(job: str, *flags: str) -> dict[str, Any]:
    """Run `jobs/<job>.py` on this process's Ray and return the result that it would print."""
    config, function = script(job)
    return dict(function(parse(config, flags)))
