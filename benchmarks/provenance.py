"""Provenance of a stored result: command, date, machine, processor and versions."""

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from trainyard.storage.software import versions


def provenance(data_dir: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Build the head of a result; the local paths of data and model are replaced by names."""
    command = " ".join(["python", *sys.argv])
    for path, name in ((data_dir, "DIR"), (model, "MODEL")):
        command = command.replace(path, name) if path else command
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
        "versions": versions(),
        # These control how threads wait for each other, and so the time of a short forward pass.
        "environment": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_"))
        },
    }


def processor() -> str:
    """Return the processor's name, from /proc/cpuinfo on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
