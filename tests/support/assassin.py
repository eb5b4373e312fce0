"""Kill a process of a run when the run reaches a step."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from trainyard.storage.folder import RunFolder


@contextmanager
def kill_at(folder: RunFolder, step: int, victim: str) -> Iterator[None]:
    """Send SIGKILL at `step` to the newest child process whose command line contains `victim`.

    The block must reach the step before it ends.
    """
    killed: list[int] = []

    def kill() -> None:
        while folder.progress().get("step", 0) < step:
            time.sleep(0.01)
        # The newest: a process of an earlier run may not have ended yet.
        newest = max(
            (
                one
                for one in psutil.Process().children(recursive=True)
                if victim in " ".join(one.cmdline())
            ),
            key=psutil.Process.create_time,
        )
        newest.kill()
        killed.append(newest.pid)

    threading.Thread(target=kill, daemon=True).start()
    yield
    assert killed
