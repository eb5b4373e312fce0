"""Attempts in forks of a process with most modules imported, so a kill costs few imports."""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from support.lifted import lift, lift_compiler
from support.ranks import Attempt, join_group, run_attempt

WAIT_SECONDS = 120


def run_forked(attempts: Sequence[Attempt], meeting: Path) -> None:
    """Run attempts one after another, each in new processes, and check their exit statuses."""
    meeting.mkdir(parents=True)
    (meeting / "attempts.json").write_text(json.dumps([asdict(attempt) for attempt in attempts]))
    ended = subprocess.run(
        [sys.executable, __file__, str(meeting)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:]
    every = json.loads((meeting / "codes.json").read_text())
    for attempt, codes in zip(attempts, every, strict=True):
        world = len(codes)
        if attempt.killed is None:
            assert codes == [0] * world, ended.stdout[-6000:]
        elif attempt.kills_all:
            assert codes == [-signal.SIGKILL] * world, ended.stdout[-6000:]
        else:
            assert codes[attempt.killed[0]] == -signal.SIGKILL, ended.stdout[-6000:]
            assert all(codes), ended.stdout[-6000:]


def _fork(attempt: dict[str, Any], meeting: Path, world: int, rank: int, group: int) -> int:
    child = os.fork()
    if child:
        with suppress(PermissionError, ProcessLookupError):  # it has done so, and may have ended
            os.setpgid(child, group or child)  # before the next one joins the group
        return child
    code = 1
    try:
        os.setpgid(0, group)
        if attempt["config"]["strategy"] == "deepspeed":
            lift_compiler()
        join_group(meeting, world, rank)
        run_attempt(attempt, rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork the processes of each attempt of `run_forked`."""
    # The imports of the attempts, except packages that start threads, which a fork would lose.
    import scipy.stats  # noqa: F401
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.bert.modeling_bert  # noqa: F401

    import trainyard.training.worker.loop
    import trainyard.training.worker.trainer_loop  # noqa: F401

    meeting = Path(sys.argv[1])
    lift()
    torch.set_num_threads(1)
    every = []
    for number, attempt in enumerate(json.loads((meeting / "attempts.json").read_text())):
        place = meeting / str(number)
        place.mkdir()
        children: list[int] = []
        world = attempt["config"]["num_workers"]
        for rank in range(world):
            children.append(_fork(attempt, place, world, rank, children[0] if children else 0))
        timer = threading.Timer(WAIT_SECONDS, os.killpg, (children[0], signal.SIGKILL))
        timer.start()
        try:
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        finally:
            timer.cancel()
            timer.join()
        every.append(codes)
    (meeting / "codes.json").write_text(json.dumps(every))


if __name__ == "__main__":
    main()
