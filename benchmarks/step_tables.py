"""Tables of the speed of training: compare_steps.py, first_step.py and quickstart_seeds.py."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from markdown_tables import RESULTS, Result, load, short_commit, source, table

OTHER_LOOPS = {"peer": "`Trainer`", "grouped": "its `group_by_length`", "plain": "a plain loop"}
TASKS = ("cola", "sst2", "mrpc", "rte")
PRECISIONS = {"fp32": "", "bf16": "-bf16"}
"""Precision -> end of the names of its results."""
TEXTS = {"cola": "8 words", "sst2": "9 words", "mrpc": "44 words", "rte": "52 words"}
"""Task -> mean length of its training texts; both texts of a pair count."""
ROWS = 10_000
"""Rows of the table of durations."""
EPOCHS = {1: "one epoch", 3: "three, the default of `train`", 5: "five, of `init`"}


def steps() -> str:
    """Compare training throughput with Hugging Face's Trainer and a plain loop."""
    names = [
        f"{task}{precision}"
        for precision in PRECISIONS.values()
        for task in TASKS
        if (RESULTS / f"steps-{task}{precision}.json").exists()
    ]
    results = {name: load(f"steps-{name}") for name in names}
    others = OTHER_LOOPS
    sides = [side for side in others if any(side in found["samples_per_second"] for found in
             results.values())]  # fmt: skip
    rows = [
        [
            name.partition("-")[0].upper(),
            found.get("precision", "fp32"),
            f"{found['samples_per_second']['ours']:.1f}",
            *(cell for side in sides for cell in _compared(found, side)),
        ]
        for name, found in results.items()
    ]
    columns = ["Task", "Precision", "Trainyard, samples/s"]
    for side in sides:
        columns += [f"{others[side]}, samples/s", "ratio [95 %]"]
    return table(columns, rows) + source(*results.values())


def step_means() -> str:
    """List the geometric means over tasks of the throughput over that of each other loop."""
    rows, used = [], []
    for precision, end in PRECISIONS.items():
        found = [load(f"steps-{task}{end}") for task in TASKS]
        used += found
        rows.append([precision] + [
            f"{statistics.geometric_mean(one['ratios'][side]['ratio'] for one in found):.2f}"
            for side in OTHER_LOOPS
        ])  # fmt: skip
    columns = ["Precision", *(f"times {name}" for name in OTHER_LOOPS.values())]
    return table(columns, rows) + _one_source(used)


def _one_source(used: Sequence[Result]) -> str:
    """State in one line where results of one machine and day come from."""
    commits = " and ".join(dict.fromkeys(short_commit(one) for one in used))
    machine = f"{used[0]['processor']}, {used[0]['machine']}, {used[0]['date']}"
    return f"\n`make bench DATA=DIR`, {machine}, commit {commits}.\n"


def duration() -> str:
    """List the minutes that training takes on two cores, by the length of the texts."""
    results = {task: load(f"steps-{task}") for task in TASKS}
    rows = []
    for task, found in results.items():
        speed = found["samples_per_second"]["ours"]
        minutes = (f"{epochs * ROWS / speed / 60:.1f}" for epochs in EPOCHS)
        rows.append([f"{TEXTS[task]} ({task.upper()})", f"{speed:.0f}", *minutes])
    columns = ["Mean length of a row", "Rows per second", *EPOCHS.values()]
    columns[2] = f"Minutes for {ROWS:,} rows: {columns[2]}"
    return table(columns, rows) + _one_source([*results.values()])


def size() -> str:
    """List the size of the file, peak memory and seconds of a run of ten steps, by the number of rows."""
    found = load("scale")
    rows = [
        [
            f"{int(count):,}",
            f"{run['file_mib']:.0f}",
            f"{run['peak_mib']['all'] / 1024:.1f}",
            f"{run['seconds']:.0f}",
        ]
        for count, run in found["runs"].items()
    ]
    columns = ["Rows", "Parquet file, MiB", "Peak memory of all processes, GiB", "Seconds"]
    return table(columns, rows) + source(found)


def _compared(found: Result, side: str) -> tuple[str, str]:
    """Return the samples per second of another side, and the ratio of ours to it."""
    if side not in found["samples_per_second"]:
        return "", ""
    # Before 2026-12 there was one other side.
    ratio = found["ratios"][side] if "ratios" in found else {
        "ratio": found["speed_ratio"], "interval": found["interval"]
    }  # fmt: skip
    speed = found["samples_per_second"][side]
    return f"{speed:.1f}", "{:.2f} [{:.2f}, {:.2f}]".format(ratio["ratio"], *ratio["interval"])


def first_step() -> str:
    """List the seconds from the command to the first step."""
    found = load("first-step-mrpc")
    names = {"tokenizes": "tokenizes first", "tokenized": "tokenized before"}
    parts = ["seconds", "driver_start_up", "tokenization", "worker_start_up", "first_step", "other"]
    rows = [
        [label, *(f"{found['medians'][name][part]:.1f}" for part in parts)]
        for name, label in names.items()
    ]
    columns = ["MRPC", "Seconds", "Driver", "Tokenization", "Worker", "First step", "Other"]
    return table(columns, rows) + source(found)


def quickstart(folder: Path = RESULTS) -> str:
    """List the stages of `trainyard quickstart`, in seconds, and its accuracy by seed."""
    found = load("quickstart", folder)
    runs = found["runs"]
    rows = [
        [stage, f"{median:.1f}", *(f"{run['stages'][stage]:.1f}" for run in runs)]
        for stage, median in found["median_seconds_by_stage"].items()
    ]
    seconds = [run["seconds"] for run in runs]
    rows.append(
        ["all", f"{statistics.median(seconds):.1f}", *(f"{second:.1f}" for second in seconds)]
    )
    rows.append(["validation accuracy", "", *(f"{run['accuracy']:.4f}" for run in runs)])
    columns = ["Stage, seconds", "Median", *(f"seed {run['seed']}" for run in runs)]
    return table(columns, rows) + source(found)
