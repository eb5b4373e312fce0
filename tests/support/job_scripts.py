"""Call the jobs of the command in this process.

Tests that use it depend on the command line only, not on the modules behind it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainyard.command import JOBS as ROWS
from trainyard.command import parse

ROOT = next(folder for folder in Path(__file__).parents if (folder / "jobs").is_dir())
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
"""Names of the scripts in jobs/."""

Job = Callable[[Any], Mapping[str, Any]]


def script(job: str) -> tuple[type[Any], Job]:
    """Return the config class and the function of `jobs/<job>.py`."""
    row = ROWS["data-doctor" if job == "doctor_data" else job]
    return row.config_class(), row.run


def config_of(job: str, *flags: str) -> Any:
    """Parse the command line of `jobs/<job>.py`."""
    return parse(script(job)[0], flags)


def run(job: str, *flags: str) -> dict[str, Any]:
    """Run `jobs/<job>.py` on this process's Ray and return the result that it would print."""
    config, function = script(job)
    return dict(function(parse(config, flags)))
