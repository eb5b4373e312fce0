"""Versions of the software that produced a result."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import trainyard

PACKAGES = ("ray", "torch", "transformers", "accelerate", "datasets", "evaluate")


def versions(*optional: str) -> dict[str, str | None]:
    """Return the versions of Python, Trainyard and `PACKAGES` by name, and the Git `commit`.

    The version of an `optional` package that is not installed is None.
    """
    result: dict[str, str | None] = {
        "python": platform.python_version(),
        "trainyard": trainyard.__version__,
    }
    for package in PACKAGES:
        result[package] = version(package)
    for package in optional:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = None
    return {**result, "commit": _commit()}


def _commit() -> str | None:
    """Return the Git commit, with `+` if tracked files differ; None without Git or a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
