"""Compare a GPU's speed with bare loops and with CPUs: `python benchmarks/gpu.py --only PIECE`.

Each piece takes less than ten minutes on one GPU, needs no network, and writes its checks to
benchmarks/results/gpu-PIECE.json. The exit status is 1 if a check fails. `--device cpu --tiny
--results FOLDER` tests the script on a small model; its figures mean nothing, and failed checks are
ignored.

Models have random weights. Every run is a new process, forked from one that has only imported
modules, since a choice such as --deterministic holds for a whole process.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_tables import RESULTS, load, source, table

HERE = Path(__file__).parent
PEAK = 989e12
"""FLOP/s of an H100 or H200 SXM in bf16, dense: NVIDIA's data sheet."""
GLUE_STEPS = {32: 29_020, 8: 7_910}
"""Optimizer steps of the ten GLUE tasks, three epochs each, by their batch size."""
GLUE_CHECKPOINTS, GLUE_STARTS = 19, 9
BASE = {
    "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512,
}  # fmt: skip
TINY = {**BASE, "vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Device, model size and scratch folder of all pieces."""

    device: str
    tiny: bool
    folder: Path
    """Scratch: model/, rows and runs."""
    fresh: ProcessPoolExecutor
    """Each call runs in a new process."""

    def ours(self, **flags: Any) -> dict[str, Any]:
        """Run our loop; see `train`."""
        return self.fresh.submit(train, str(self.folder), self.device, flags).result()

    def bare(self, **flags: Any) -> float:
        """Time a hand-tuned loop; see `bare`."""
        return self.fresh.submit(bare, str(self.folder), self.device, flags).result()

    @property
    def sizes(self) -> dict[str, int]:
        return TINY if self.tiny else BASE

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes of micro-batches: rows and tokens."""
        return ((8, 32),) if self.tiny else ((32, 128), (256, 128))

    @property
    def turns(self) -> int:
        return 1 if self.tiny else 3

    @property
    def steps(self) -> int:
        return 8 if self.tiny else 100


def check(name: str, value: Any, limit: str = "", ok: bool = True) -> dict[str, Any]:
    """Print and return a check; without a limit, it is a figure for comparison."""
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {value} {limit}", file=sys.stderr, flush=True)
    return {"check": name, "value": value, "limit": limit, "ok": bool(ok)}


# In new processes


def train(folder: str, device: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Run our loop on the rows of `folder`; return the seconds per step and the time ledger."""
    from compare_alone import alone

    from trainyard.config import TrainConfig
    from trainyard.training.worker.session import Session

    marks: list[float] = []
    finish = Session.finish_step

    def finish_and_mark(self: Session, done: int, loss: Any, rows: int) -> bool:
        going_on = finish(self, done, loss, rows)
        marks.append(time.perf_counter())
        return going_on

    Session.finish_step = finish_and_mark  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=folder) as storage:
        config = TrainConfig(
            train_file=f"{folder}/train.parquet", validation_file=f"{folder}/validation.parquet",
            text_column="sentence1", text_pair_column="sentence2", label_column="label",
            model_name_or_path=f"{folder}/model", use_gpu=device == "cuda", storage_path=storage,
            learning_rate=2e-5, logging_steps=2, eval_steps=10**6, num_train_epochs=1000,
            **flags,
        )  # fmt: skip
        run = alone(config, threads=1)
        seconds = json.loads((run / "progress.json").read_text())["seconds"]
    every = config.logging_steps  # reading the losses waits for the device
    read = marks[every - 1 :: every]
    times = [(b - a) / every for a, b in itertools.pairwise(read[1:])]
    return {"step": statistics.median(times), "seconds": seconds}


def bare(folder: str, device: str, flags: Mapping[str, Any]) -> float:
    """Return the seconds per step of a plain loop: autocast, clipping, fused AdamW."""
    import contextlib

    import torch
    import transformers

    torch.set_num_threads(1)  # as ours has
    rows, width = flags["shape"]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    model = transformers.AutoModelForSequenceClassification.from_pretrained(f"{folder}/model")
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    forward = torch.compile(model, mode="reduce-overhead") if flags.get("compiled") else model
    ids = torch.randint(5, 100, (8, rows, width), device=device)
    labels = torch.zeros(rows, dtype=torch.long, device=device)
    bf16 = flags["precision"] == "bf16"
    times = []
    for step in range(flags["steps"]):
        if step % 2 == 0:
            wait()
            times.append(time.perf_counter())
        with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = forward(input_ids=ids[step % len(ids)], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return statistics.median(b - a for a, b in itertools.pairwise(times[1:])) / 2


def product(device: str, size: int) -> float:
    """Measure the FLOP/s of a product of square bf16 matrices."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in "ab")
    for turns in (3, 10):  # the first ones warm up
        wait()
        began = time.perf_counter()
        for _ in range(turns):
            a @ b
        wait()
    return 20 * size**3 / (time.perf_counter() - began)


def gpu_name() -> str:
    """Return the name of the GPU."""
    import torch

    return str(torch.cuda.get_device_name())


# Pieces


def speed(setting: Setting) -> list[dict[str, Any]]:
    """Compare the time of a step with the bare loop, in turns, and with the GPU's peak."""
    found = []
    peak = setting.fresh.submit(product, setting.device, 128 if setting.tiny else 8192).result()
    found.append(check("bf16 product, TFLOP/s", round(peak / 1e12), "> 700", peak > 700e12))
    for precision in ("bf16", "no"):
        for rows, width in setting.shapes:
            name = f"{'fp32' if precision == 'no' else precision}, {rows} x {width}"
            bare_flags = {"shape": (rows, width), "precision": precision, "steps": setting.steps}
            ours, theirs = [], []
            for _ in range(setting.turns):
                ours.append(setting.ours(**shape_flags(setting, rows, width, precision))["step"])
                theirs.append(setting.bare(**bare_flags))
            mine, other = statistics.median(ours), statistics.median(theirs)
            value = f"{1000 * mine:.2f}, {1000 * other:.2f}"
            found.append(check(f"{name}: ms a step, ours and the bare loop's", value,
                               "ours < 1.03 times the bare loop's", mine < 1.03 * other))  # fmt: skip
            if precision == "bf16":
                floor = 0.35 if rows <= 32 else 0.45
                share = step_flop(setting.sizes, rows, width) / mine / PEAK
                found.append(check(f"{name}: share of the peak", round(share, 3), f"> {floor}",
                                   share > floor))  # fmt: skip
                if setting.device == "cuda":
                    graphs = setting.bare(**bare_flags, compiled=True)
                    found.append(check(f"{name}: ms a step, the bare loop compiled with CUDA graphs",
                                       round(1000 * graphs, 2)))  # fmt: skip
    return found


def shape_flags(setting: Setting, rows: int, width: int, precision: str) -> dict[str, Any]:
    """Return the flags of a run whose micro-batches all have one shape."""
    return {
        "max_length": width, "pad_to_max_length": True, "train_batch_size": rows,
        "per_device_train_batch_size": rows, "max_steps": setting.steps, "mixed_precision": precision,
    }  # fmt: skip


def step_flop(sizes: Mapping[str, int], rows: int, width: int) -> float:
    """Count the FLOP of a step: three times the forward pass of the layers and their attention."""
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    weights = 4 * hidden**2 + 2 * hidden * sizes["intermediate_size"]
    return 3 * 2 * rows * width * layers * (weights + 2 * width * hidden)


def deterministic(setting: Setting) -> list[dict[str, Any]]:
    """Measure the cost of --deterministic."""
    found = []
    rows, width = setting.shapes[0]
    for precision in ("bf16", "no"):
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(setting.turns):
            for choice, each in times.items():
                flags = shape_flags(setting, rows, width, precision)
                each.append(setting.ours(**flags, deterministic=choice)["step"])
        on, off = (statistics.median(each) for each in times.values())
        name = f"{'fp32' if precision == 'no' else precision}, {rows} x {width}"
        found.append(check(f"{name}: ms a step with --deterministic and without",
                           f"{1000 * on:.2f}, {1000 * off:.2f}"))  # fmt: skip
    return found


def glue(setting: Setting) -> list[dict[str, Any]]:
    """Train on pairs of all lengths; project the time of GLUE from the time of a step."""
    steps, found, spent = {}, [], dict[str, float]()
    for size in GLUE_STEPS:
        run = setting.ours(
            train_batch_size=size, per_device_train_batch_size=size, mixed_precision="bf16",
            max_length=128, max_steps=setting.steps, save_steps=setting.steps // 2,
        )  # fmt: skip
        steps[size], spent = run["step"], run["seconds"]
        found.append(check(f"batch {size}: ms a step", round(1000 * run["step"], 2)))
        training = sum(spent.get(name, 0.0) for name in ("data", "compute", "sync", "records"))
        share = spent.get("data", 0.0) / training
        found.append(check(f"batch {size}: share of data", round(share, 4), "< 0.02", share < 0.02))
    found.append(check("seconds of a checkpoint", round(spent["checkpoint"] / 2, 2)))
    found.append(check("start-up of a worker, seconds", round(spent["start_up"], 1), "< 20",
                       spent["start_up"] < 20))  # fmt: skip
    whole = sum(count * steps[size] for size, count in GLUE_STEPS.items())
    checkpoints = GLUE_CHECKPOINTS * spent["checkpoint"] / 2
    whole += checkpoints + GLUE_STARTS * spent["start_up"]
    share = checkpoints / whole
    found.append(check("GLUE, projected: share of checkpoints", round(share, 4), "< 0.05",
                       share < 0.05))  # fmt: skip
    found.append(check("GLUE, projected, seconds", round(whole), "< 600", whole < 600))
    return found


def serving(setting: Setting) -> list[dict[str, Any]]:
    """Compare a replica on a GPU with one on a CPU: answers and requests per second."""
    from compare_serving import answers, largest_difference
    from load import bodies_of, classifier, closed_loop
    from serving_process import running

    from trainyard.data.demo import generate

    bodies = bodies_of([first for first, *_ in generate("validation", 40)])
    model = classifier(setting.folder / "served", f"{setting.folder}/model")
    expected: list[dict[str, float]] = []
    found, base = [], 0.0
    kinds = [("cpu", "float32")]
    kinds += [("cuda", dtype) for dtype in ("float32", "bfloat16", "float16")] * (
        setting.device == "cuda"
    )
    for device, dtype in kinds:
        name = f"{device}, {dtype}"
        gpus = int(device == "cuda")
        with running("ours", model, 2, dtype=dtype, gpus=gpus) as server:
            given = asyncio.run(answers(server.url, bodies))
            expected = expected or given
            off = largest_difference(expected, given)
            limit = 1e-3 if dtype == "float32" else 2e-2
            found.append(check(f"{name}: largest difference to the CPU's scores", f"{off:.1e}",
                               f"< {limit}", off < limit))  # fmt: skip
            for clients in (4,) if setting.tiny else (32, 64):
                load = closed_loop(server.url, bodies, clients, 1 if setting.tiny else 15, 2)
                outcome = asyncio.run(load).as_json()
                rate = outcome["per_second"]
                found.append(check(f"{name}, {clients} clients: requests per second, p99 in ms",
                                   f"{rate}, {outcome['p99_ms']}", "only answers of status 200",
                                   set(outcome["by_status"]) == {"200"}))  # fmt: skip
        base = base or rate
        if device == "cuda":
            found.append(check(f"{name}: times the CPU's requests per second",
                               round(rate / base, 1), "> 20", rate > 20 * base))  # fmt: skip
    return found


PIECES: dict[str, tuple[Callable[[Setting], list[dict[str, Any]]], str]] = {
    "speed": (speed, "steps of BERT base against a bare loop and the GPU's peak"),
    "deterministic": (deterministic, "price of `--deterministic`"),
    "glue": (glue, "share of data and checkpoints, time of GLUE"),
    "serving": (serving, "answers and requests per second of a replica, against a CPU's"),
}


def gpu_table(folder: Path = RESULTS) -> str:
    """Build the table of all checks; a piece without results has its subject and command."""
    rows: list[Sequence[Any]] = []
    results = []
    for piece, (_, about) in PIECES.items():
        if not (folder / f"gpu-{piece}.json").exists():
            rows.append([piece, about, "not run yet", f"`python benchmarks/gpu.py --only {piece}`"])
            continue
        result = load(f"gpu-{piece}", folder)
        results.append(result)
        rows += [
            [
                piece,
                found["check"],
                found["value"],
                found["limit"] + " **failed**" * (not found["ok"]),
            ]
            for found in result["checks"]
        ]
    columns = ["Piece", "Check", "Found", "Must hold"]
    return table(columns, rows) + (source(*results) if results else "")


def main() -> None:
    """Run the pieces and store the results."""
    from provenance import provenance
    from scale import write_rows

    sys.path.insert(0, str(HERE.parent / "tests"))
    from support.tiny import write_tiny_model

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compare_alone", "trainyard.training.worker.loop"])
    failed = 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(1, context, max_tasks_per_child=1) as fresh,
    ):
        setting = Setting(args.device, args.tiny, Path(scratch), fresh)
        write_tiny_model(setting.folder / "model", **setting.sizes)
        for name, count in (("train", 400 if args.tiny else 4000), ("validation", 64)):
            write_rows(setting.folder / f"{name}.parquet", count)
        for piece in args.only:
            checks = PIECES[piece][0](setting)
            gpu = fresh.submit(gpu_name).result() if args.device == "cuda" else "none"
            result = {**provenance(), "gpu": gpu, "checks": checks}
            (args.results / f"gpu-{piece}.json").write_text(json.dumps(result, indent=2) + "\n")
            failed += sum(not found["ok"] for found in checks)
    print(json.dumps({"failed": failed}))
    sys.exit(failed > 0 and not args.tiny)


if __name__ == "__main__":
    main()
