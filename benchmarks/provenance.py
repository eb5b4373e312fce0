"""What every stored result says of itself: the command, the day, the machine and the versions."""

import os
import platform
import sys
import time
from typing import Any

from trainyard.versions import versions


def provenance(data_dir: str | None = None) -> dict[str, Any]:
    """The head of a result; where the data lies here is nobody's business."""
    command = " ".join(["python", *sys.argv])
    return {
        "command": command.replace(data_dir, "DIR") if data_dir else command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
