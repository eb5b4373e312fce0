"""Measure the host time per micro-batch: the loop's overhead around a model that computes nothing.

    python benchmarks/host_time.py --rounds 5

Runs the loop of `jobs/train.py` on the demo's rows in this process, with a model of one weight in
place of MiniLM. The time of that weight's passes and optimizer steps is measured alone and
subtracted. Writes benchmarks/results/host-time.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from compare_alone import alone
from provenance import provenance

from trainyard.config import TrainConfig
from trainyard.training.worker.session import Session

HERE = Path(__file__).parent
ROWS, MICRO_BATCHES = 8, 4
"""Rows of a micro-batch, and micro-batches of a step."""
WARM_UP = 20
"""Number of initial steps that are not counted."""


class Empty(torch.nn.Module):
    """Model of one weight, whose loss ignores the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.loss: Any = None

    def forward(self, **_: Any) -> "Empty":
        self.loss = self.weight.sum()
        return self


class DoneError(Exception):
    """Exception that ends the run after its last counted step."""


def loop_seconds(steps: int) -> tuple[float, float]:
    """Return the wall and CPU seconds per micro-batch of the loop."""
    began: list[tuple[float, float]] = []
    finish = Session.finish_step

    def finish_step(self: Session, done: int, loss: Any, rows: int) -> bool:
        going_on = finish(self, done, loss, rows)
        if done == WARM_UP:
            began.append((time.perf_counter(), time.process_time()))
        if done == WARM_UP + steps:
            raise DoneError
        return going_on

    built = Session.build_model
    Session.finish_step = finish_step  # type: ignore[method-assign]
    Session.build_model = lambda _: Empty()  # type: ignore[method-assign,assignment]
    try:
        with tempfile.TemporaryDirectory() as storage:
            alone(
                TrainConfig(
                    task="demo", storage_path=storage, train_batch_size=ROWS * MICRO_BATCHES,
                    per_device_train_batch_size=ROWS, num_train_epochs=1000,
                    logging_steps=10, eval_steps=10**6,
                ),
                threads=1,
            )  # fmt: skip
    except DoneError:
        ended = time.perf_counter(), time.process_time()
    finally:
        Session.finish_step, Session.build_model = finish, built  # type: ignore[method-assign]
    wall, processor = (b - a for a, b in zip(began[0], ended, strict=True))
    return wall / (steps * MICRO_BATCHES), processor / (steps * MICRO_BATCHES)


def bare_seconds(steps: int) -> tuple[float, float]:
    """Return the wall and CPU seconds per micro-batch of the model alone, with its optimizer."""
    model = Empty()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wall, processor = time.perf_counter(), time.process_time()
        for _ in range(MICRO_BATCHES):
            model().loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    count = steps * MICRO_BATCHES
    return (time.perf_counter() - wall) / count, (time.process_time() - processor) / count


def main() -> None:
    """Run both in turn, print and store the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    runs = []
    for _ in range(args.rounds):
        loop, bare = loop_seconds(args.steps), bare_seconds(args.steps)
        runs.append(
            {"wall_ms": 1000 * (loop[0] - bare[0]), "processor_ms": 1000 * (loop[1] - bare[1]),
             "bare_ms": 1000 * bare[0]}
        )  # fmt: skip
        print(json.dumps(runs[-1]), file=sys.stderr)
    medians = {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}
    result = {**provenance(), "medians": medians, "runs": runs}
    (HERE / "results/host-time.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
