"""Compare our loop with others in turns of a few steps, which cancels drift of the machine's speed.

    python benchmarks/compare_steps.py --task mrpc --data-dir DIR --turns 40 --mixed-precision bf16

All processes stay alive; one computes while the others wait for their turn, so a slow minute of the
machine affects all of them. The loops are those of `jobs/train.py`, of `reference_trainer.py`
(`peer`, and `grouped` with batches of similar length), and a plain loop over our batches. Ours runs
without Ray, whose overhead `compare_alone.py` measures. Stores all turns, the ratios of rows per
second over all turns, and 95 % bootstrap intervals over the turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from trainyard.config import DEFAULT_MODEL, TrainConfig
from trainyard.models.hub import resolve_model

HERE = Path(__file__).parent
WARM_UP = 2
"""Number of initial turns of each side that are not counted."""


class Pace:
    """Count a process's steps, and make it wait for its next turn after every `steps` steps."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._rows = steps, 0, 0
        self._began = time.perf_counter()

    def step(self, rows: int) -> None:
        """Count a step of `rows` rows; after the last one of a turn, wait for the next turn."""
        self._done += 1
        self._rows += rows
        if self._done % self._steps == 0:
            seconds = time.perf_counter() - self._began
            print("TURN", json.dumps({"rows": self._rows, "seconds": seconds}), flush=True)
            sys.stdin.readline()
            self._rows, self._began = 0, time.perf_counter()


def ours(args: argparse.Namespace) -> None:
    """Run our loop in this process, in turns."""
    from compare_alone import alone

    from trainyard.training.worker.session import Session

    pace, finish = Pace(args.steps), Session.finish_step

    def finish_and_wait(self: Session, done: int, loss: Any, rows: int) -> bool:
        going_on = finish(self, done, loss, rows)
        pace.step(rows)
        return going_on

    Session.finish_step = finish_and_wait  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as storage:
        config = TrainConfig(
            task=args.task, data_dir=args.data_dir, storage_path=storage,
            train_batch_size=args.batch_size, per_device_train_batch_size=args.batch_size,
            mixed_precision=args.mixed_precision,
        )  # fmt: skip
        alone(config, args.threads)


def plain(args: argparse.Namespace) -> None:
    """Run a loop without checks, records and checkpoints over the same batches, in turns."""
    import torch

    from trainyard.batch_plan import Plan, padded_length
    from trainyard.data import find_splits, prepare
    from trainyard.models import build_model, build_tokenizer

    torch.set_num_threads(args.threads)
    config = TrainConfig(
        task=args.task, data_dir=args.data_dir, mixed_precision=args.mixed_precision
    )
    with tempfile.TemporaryDirectory() as cache:
        splits = find_splits(config)
        data = prepare(splits, build_tokenizer(config), config, Path(cache))
        table = data.table("train")
        model = build_model(data.model, splits.task, data.model_revision, seed=config.seed).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        plan = Plan(table.lengths, args.batch_size, args.batch_size, config.seed)
        pace = Pace(args.steps)
        for _, _, (rows,) in plan.steps(0, config.num_train_epochs * plan.steps_per_epoch):
            longest, multiple = int(table.lengths[rows].max()), config.padding_multiple
            width = padded_length(longest, multiple, config.max_length, fixed=False)
            batch = {name: torch.from_numpy(x) for name, x in table.gather(rows, width).items()}
            with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            pace.step(len(rows))


def grouped(args: argparse.Namespace) -> None:
    """Run the peer's loop with batches of rows of similar length."""
    peer(args, "--group-by-length")


def peer(args: argparse.Namespace, *more: str) -> None:
    """Run the peer's loop in this process, in turns."""
    import reference_trainer
    import transformers

    pace = Pace(args.steps)

    class Paced(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace.step(args.batch_size)

    sys.argv[1:] = [
        "--task", args.task, "--data-dir", args.data_dir, "--model", resolve_model(DEFAULT_MODEL),
        "--batch-size", str(args.batch_size), "--threads", str(args.threads), *more,
        *(["--bf16"] if args.mixed_precision == "bf16" else []),
    ]  # fmt: skip
    reference_trainer.main(Paced())


SIDES = {"ours": ours, "peer": peer, "grouped": grouped, "plain": plain}


def take_turns(sides: list[str], turns: int) -> dict[str, list[dict[str, float]]]:
    """Alternate between the sides; return rows and seconds of each turn of each side."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    quiet: dict[str, Any] = {
        "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL,
        "text": True,
    }  # fmt: skip
    running = {
        name: subprocess.Popen([sys.executable, *sys.argv, "--side", name], **quiet)
        for name in sides
    }

    def end_of_turn(name: str) -> dict[str, float]:
        stream = running[name].stdout
        assert stream is not None
        for line in stream:
            if line.startswith("TURN "):
                turn: dict[str, float] = json.loads(line[5:])
                return turn
        raise SystemExit(f"{name} ended before its turn {len(found[name])}")

    try:
        for name in sides:
            end_of_turn(name)  # every side has started, and done its first steps
        for turn in range(WARM_UP + turns):
            for name in sides[:: 1 if turn % 2 else -1]:
                stdin = running[name].stdin
                assert stdin is not None
                stdin.write("go\n")
                stdin.flush()
                found[name].append(end_of_turn(name))
                time.sleep(0.3)  # until the threads of its pool have stopped spinning
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {name: each[WARM_UP:] for name, each in found.items()}


def main() -> None:
    """Take the turns and store the results; with --side, run as the process of one side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        SIDES[args.side](args)
        return
    found = take_turns(args.sides, args.turns)
    rows, seconds = (
        {name: np.array([turn[key] for turn in each]) for name, each in found.items()}
        for key in ("rows", "seconds")
    )

    def ratio(other: str, drawn: Any) -> float:
        speed = {
            name: rows[name][drawn].sum() / seconds[name][drawn].sum() for name in ("ours", other)
        }
        return float(speed["ours"] / speed[other])

    rng = np.random.default_rng(0)
    draws = [rng.integers(0, args.turns, args.turns) for _ in range(2000)]
    ratios = {
        other: {
            "ratio": ratio(other, slice(None)),
            "interval": np.quantile([ratio(other, d) for d in draws], [0.025, 0.975]).tolist(),
        }
        for other in args.sides
        if other != "ours"
    }
    result = {
        **provenance(args.data_dir),
        "precision": {"no": "fp32"}.get(args.mixed_precision, args.mixed_precision),
        "ratios": ratios,
        "samples_per_second": {name: rows[name].sum() / seconds[name].sum() for name in args.sides},
        "turns": found,
    }
    suffix = "" if args.mixed_precision == "no" else f"-{args.mixed_precision}"
    path = HERE / "results" / f"steps-{args.task}{suffix}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("precision", "ratios", "samples_per_second")}))


if __name__ == "__main__":
    main()
