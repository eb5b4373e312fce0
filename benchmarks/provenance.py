"""Provenance of a stored result: command, date, machine, processor and versions."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainyard.storage.software import versions

ROOT = Path(__file__).resolve().parents[1]
CODE = ("platform", "jobs", "serve", "benchmarks/*.py", "pyproject.toml", "constraints.txt")
"""What a figure depends on. Other results and the pages that show them may have changed."""


def provenance(data_dir: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Build the head of a result; the local paths of data, model and checkout are left out.

    The commit ends with `+` if `CODE` differs from it.
    """
    command = " ".join(["python", *sys.argv]).replace(f"{ROOT}/", "")
    for path, name in ((data_dir, "DIR"), (model, "MODEL")):
        command = command.replace(path, name) if path else command
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "versions": {**versions(), "commit": commit()},
        # These control how threads wait for each other, and so the time of a short forward pass.
        "environment": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_"))
        },
    }


def commit() -> str | None:
    """Return the Git commit, with `+` if `CODE` differs from it; None outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "--", *CODE))
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """Read the processor's name, family and model, where Linux tells them."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    fields = {"": "model name", "family ": "cpu family", "model ": "model"}
    return ", ".join(
        words + found[1]
        for words, field in fields.items()
        if (found := re.search(rf"^{field}\s*: (.+)$", info, re.MULTILINE))
    )
