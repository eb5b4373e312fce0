"""What every stored result says of itself: the command, the day, the machine and the versions."""

import os
import platform
import sys
import time
from typing import Any

from trainyard.storage.software import versions


def provenance(data_dir: str | None = None, model: str | None = None) -> dict[str, Any]:
    """The head of a result; where data and model lie here is nobody's business."""
    command = " ".join(["python", *sys.argv])
    for path, name in ((data_dir, "DIR"), (model, "MODEL")):
        command = command.replace(path, name) if path else command
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        # They decide how threads wait for each other: a short forward pass takes 7 or 13 ms by them.
        "environment": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_"))
        },
    }
