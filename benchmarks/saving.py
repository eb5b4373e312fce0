"""Compare checkpoints written while training continues with training that waits for them.

    python benchmarks/saving.py --rounds 5

Runs the loop of `jobs/train.py` on the demo's rows in this process, both ways in turn. Each run has
a new folder; its time is from the first counted step until the last checkpoint is committed.
`copy_ms` is the time for which training pauses at least. `gap_ms` is the longest time for which the
writer blocks a thread that wakes every millisecond. Writes benchmarks/results/saving.json.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from compare_alone import alone
from provenance import provenance

from trainyard.config import TrainConfig
from trainyard.training.worker.saving import CheckpointWriter
from trainyard.training.worker.session import Session

HERE = Path(__file__).parent
WARM_UP = 4
"""Number of initial steps that are not counted."""


class Clock(threading.Thread):
    """Thread that records the longest time between two of its wake-ups."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest, self._ended = 0.0, threading.Event()

    def run(self) -> None:
        last = time.perf_counter()
        while not self._ended.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            self.longest, last = max(self.longest, now - last), now

    def end(self) -> float:
        self._ended.set()
        self.join()
        return self.longest


def one_run(storage: str, every: int, steps: int, threads: int, *, waits: bool) -> dict[str, float]:
    """Return the milliseconds of a step, of a copy, and of the longest gap during a checkpoint."""
    began: list[float] = []
    ended: list[float] = []
    copies: list[float] = []
    gaps: list[float] = []
    finish, begin, commit = Session.finish_step, CheckpointWriter.begin, CheckpointWriter._commit
    close = CheckpointWriter.close

    def finish_step(self: Session, done: int, loss: Any, rows: int) -> bool:
        if done == WARM_UP + 1:
            self._writer.join()
            began.append(time.perf_counter())
        return finish(self, done, loss, rows)

    def begin_timed(self: CheckpointWriter, *parts: Any) -> None:
        since = time.perf_counter()
        begin(self, *parts)
        copies.append(time.perf_counter() - since)
        if waits:
            assert self._writing is not None
            self._writing.result()

    def commit_timed(self: CheckpointWriter, snapshot: Any) -> Any:
        clock = Clock()
        clock.start()
        try:
            return commit(self, snapshot)
        finally:
            gaps.append(clock.end())

    def close_timed(self: CheckpointWriter) -> None:
        ended.append(time.perf_counter())
        close(self)

    Session.finish_step = finish_step  # type: ignore[method-assign]
    CheckpointWriter.begin = begin_timed  # type: ignore[method-assign,assignment]
    CheckpointWriter._commit = commit_timed  # type: ignore[method-assign]
    CheckpointWriter.close = close_timed  # type: ignore[method-assign]
    try:
        alone(
            TrainConfig(
                task="demo", storage_path=storage, train_batch_size=32, logging_steps=10,
                max_steps=WARM_UP + steps, save_steps=every, eval_steps=10**6,
            ),
            threads=threads,
        )  # fmt: skip
    finally:
        Session.finish_step, CheckpointWriter.begin = finish, begin  # type: ignore[method-assign]
        CheckpointWriter._commit, CheckpointWriter.close = commit, close  # type: ignore[method-assign]
        shutil.rmtree(Path(storage) / "alone", ignore_errors=True)
    return {
        "step_ms": 1000 * (ended[0] - began[0]) / steps,
        "copy_ms": 1000 * statistics.median(copies[1:] or copies),
        "gap_ms": 1000 * statistics.median(gaps),
    }


def main() -> None:
    """Run both ways in turn, print and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(dir=HERE) as storage:
        for turn in range(args.rounds):
            for every in args.every:
                for waits in (True, False) if turn % 2 else (False, True):
                    found = one_run(storage, every, args.steps, args.threads, waits=waits)
                    runs.append({"every": every, "waits": waits, **found})
                    print(json.dumps(runs[-1]), file=sys.stderr)
    medians = [
        {
            "every": every,
            "waits": waits,
            **{
                key: round(statistics.median(run[key] for run in chosen), 2)
                for key in ("step_ms", "copy_ms", "gap_ms")
            },
        }
        for every in args.every
        for waits in (True, False)
        if (chosen := [r for r in runs if (r["every"], r["waits"]) == (every, waits)])
    ]
    result = {**provenance(), "medians": medians, "runs": runs}
    (HERE / "results/saving.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
