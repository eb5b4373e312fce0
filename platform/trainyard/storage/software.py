"""What code a run was made by."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import trainyard

PACKAGES = ("ray", "torch", "transformers", "accelerate", "datasets", "evaluate")


def versions(*optional: str) -> dict[str, str | None]:
    """Versions of Python and the packages a result depends on, and the commit, where there is one.

    Those of `optional` packages are None where they are not installed.
    """
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "trainyard": trainyard.__version__,
    }
    for package in PACKAGES:
        found[package] = version(package)
    for package in optional:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {**found, "commit": _commit()}


def _commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
