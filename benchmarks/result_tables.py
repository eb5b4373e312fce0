"""Rewrite the tables of results/*.json in the pages that have a placeholder for them.

    python benchmarks/result_tables.py docs/benchmarks.md README.md

A place is the text between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a key of TABLES. Each
table ends with the command, the date, the machine and the commit that it was measured with. Places
that begin with `<!-- transcript: NAME -->` have outputs of commands, see excerpts.py.
"""

import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import statistics_tables
from excerpts import EXCERPTS
from first_minutes import first_minutes_table
from gpu import gpu_table
from markdown_tables import RESULTS, Result, load, short_commit, source, table
from ports_table import ports
from scaling_model import assumptions, gains, large_models, losses, machines
from step_tables import duration, first_step, quickstart, size, step_means, steps
from unbalanced_table import unbalanced

PLACE = re.compile(r"(<!-- (table|transcript): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rewrite(text: str) -> str:
    """Return a page with the present tables and transcripts in its places.

    Raises:
        KeyError: The page has a place whose name is unknown.
        ValueError: A recorded command has no line that an excerpt shows.
    """

    def fill(place: re.Match[str]) -> str:
        head, kind, name, end = place.groups()
        return f"{head}{PLACES[kind][name]()}{end}"

    return PLACE.sub(fill, text)


# Training


def memory() -> str:
    """List peak memory by the number of rows."""
    found = load("scale")
    rows = [
        [
            f"{int(count):,}",
            *(f"{run['peak_mib'][part] / 1024:.2f}" for part in ("all", "anon", "shmem", "file")),
            f"{run['seconds']:.0f}",
        ]
        for count, run in found["runs"].items()
    ]
    columns = ["Rows", "Peak, GiB", "Processes", "Object store", "Mapped files", "Seconds"]
    return table(columns, rows) + source(found)


def tokenization() -> str:
    """Compare tokenization with `datasets.map`."""
    found = load("tokenize-sst2")
    seconds = found["median_seconds"]
    row = [
        "SST-2",
        f"{seconds['ours']:.1f}",
        f"{seconds['peer']:.1f}",
        f"{found['speed_ratio']:.2f}",
    ]
    return table(["Split", "Seconds", "`datasets.map`", "Ratio"], [row]) + source(found)


def quality() -> str:
    """Compare scores with Hugging Face's Trainer, task by task."""
    rows, commits = [], set()
    for task, found in load("quality").items():
        commits.add(short_commit(found))
        for name, metric in found["metrics"].items():
            ours = list(metric["ours"].values())
            rows.append(
                [
                    f"{task.upper()}, {name}",
                    _scores(ours),
                    "{:.4f} to {:.4f}".format(*metric["rows_interval"]),
                    _scores(list(metric["peer"].values())),
                    _signed(metric),
                ]
            )
    columns = ["Task, split and metric", "By seed", "95 % over rows", "`Trainer`, by seed",
               "Difference of the last epochs' means [95 % over seeds]"]  # fmt: skip
    return table(columns, rows) + f"\nCommits {', '.join(sorted(commits))}.\n"


def _scores(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _signed(metric: Result) -> str:
    if not metric["peer"]:
        return ""
    interval = " [{:+.3f}, {:+.3f}]".format(*metric["interval"]) if "interval" in metric else ""
    return f"{metric['difference']:+.3f}{interval}"


def workers() -> str:
    """List throughput by the number of workers on two cores."""
    found = load("scaling")
    rows = [
        [
            number,
            ", ".join(f"{run['samples_per_second']:.1f}" for run in workers["runs"]),
            "; ".join(f"{run['compute']:.2f}, {run['sync']:.2f}" for run in workers["runs"]),
            f"{workers['bytes_per_step'] / 1e6:.0f} MB",
            f"{workers['speed']:.2f}",
        ]
        for number, workers in found["workers"].items()
    ]
    columns = ["Workers", "Samples per second", "Compute, exchange: seconds a step",
               "Sent per worker and step", "Speed against one"]  # fmt: skip
    return table(columns, rows) + source(found)


def ray_overhead() -> str:
    """List the throughput in Ray over the throughput of the loop alone."""
    found = load("alone-mrpc-1")
    ratios = ", ".join(f"{ratio:.2f}" for ratio in found["speed_ratios"])
    return table(["Pairs of runs", "In Ray over alone"], [[len(found["runs"]), ratios]]) + source(
        found
    )


def scaling_assumptions() -> str:
    """List the constants of scaling_model.py, and where they are from."""
    return table(["Assumption", "Value", "Source"], list(assumptions()))


def scaling_machines() -> str:
    """List the machines of scaling_model.py."""
    columns = ["Machines", "GPUs a node", "Peak, TFLOP/s (bf16)", "GB a GPU", "Its memory, GB/s",
               "NVLink, GB/s", "Network of a node, GB/s", "Microseconds a message"]  # fmt: skip
    return table(columns, list(machines()))


def scaling_model() -> str:
    """List the gains that the model of scaling_model.py predicts; nothing here is measured."""
    columns = ["Model", "Machines", "Tokens of a step", "Gain of 8", "Of 64", "Of 256",
               "Bound at 256 by"]  # fmt: skip
    return table(columns, list(gains()))


def large_model() -> str:
    """List the steps of large models on 256 GPUs by strategy; nothing here is measured."""
    columns = [
        "Model",
        "Machines",
        "Strategy",
        "GB a GPU",
        "Seconds a step",
        "Not waiting",
        "Bound by",
    ]
    return table(columns, list(large_models()))


def lost_work() -> str:
    """List the time that 256 GPUs lose to checkpoints and failures; nothing here is measured."""
    columns = ["Model", "Checkpoint", "Its seconds", "Hours between failures", "Minutes between "
               "checkpoints, at best", "Time lost, at most"]  # fmt: skip
    return table(columns, list(losses()))


def strategies() -> str:
    """List the largest differences from ddp, by architecture and strategy."""
    found = load("strategies")

    def cell(seen: Result) -> str:
        if "error" in seen:
            return str(seen["error"])
        resumed = "same bits" if seen["resumed"] else "other bits"
        return f"{seen['loss_difference']:.1g}, {seen['logit_difference']:.1g}, {resumed}"

    rows = [[kind, *map(cell, row.values())] for kind, row in found["architectures"].items()]
    columns = ["Architecture", *next(iter(found["architectures"].values()))]
    return table(columns, rows) + source(found)


def strategy_matrix(folder: Path = RESULTS) -> str:
    """List the differences from ddp by strategy and precision."""
    found = load("strategy-matrix", folder)
    rows: list[Sequence[Any]] = []
    for name, row in found["rows"].items():
        kind, precision = name.rsplit("-", 1)
        skipped = row["skipped_steps"]
        rows.append([
            kind, "fp32" if precision == "no" else precision,
            f"{row['loss_difference']:.1g}", f"{row['weight_difference']:.1g}",
            "same bits" if row["resumed"] else "**other bits**",
            *(f"{row['moved'][world]:.1g}" for world in ("1", "4")),
            "" if skipped is None else f"{skipped} of {found['steps']}", row["loaded"],
        ])  # fmt: skip
    columns = ["Strategy", "Precision", "Loss, from ddp's", "Weights, from ddp's", "Cut off and resumed",
               "2 workers, then 1", "2, then 4", "Skipped steps", "Loaded by transformers as"]  # fmt: skip
    return table(columns, rows) + source(found)


# Tuning


def one_sweep() -> str:
    """Summarize one sweep of MRPC."""
    found = load("sweep-mrpc")
    startup = found["startup_seconds"]
    reused = startup["in a process that is there"]
    rows = [
        ["steps of all trials, of those in full",
         f"{found['steps']} of {found['steps_of_all_trials_in_full']}: {found['cost']:.2f}"],
        ["trials finished, stopped early",
         f"{found['trials']['finished']}, {found['trials']['pruned']}"],
        ["seconds to a trial's first step in a warm process",
         f"{statistics.median(reused):.2f} ({min(reused):.2f} to {max(reused):.2f})"],
        ["the same, first trial of a process",
         ", ".join(f"{value:.1f}" for value in startup["first in its process"])],
        ["winner's F1 with fresh seeds: mean, corrected",
         f"{found['winner']['mean']:.3f}, {found['winner']['corrected']:.3f}"
         + _ends(*found["winner"]["interval"])],
        ["default recipe's: mean",
         f"{found['default']['mean']:.3f}{_ends(*found['default']['interval'])}"],
        ["verdict", f"*{found['verdict']}*: {found['difference']['value']:.3f} "
         f"[{found['difference']['low']:.3f}, {found['difference']['high']:.3f}]"],
    ]  # fmt: skip
    processor, _, _ = found["machine"].partition(",")
    resources = found["config"]["resources_per_worker"].items()
    each = ", ".join(f"{amount:g} {kind}" for kind, amount in resources)
    machine = f"{processor}, {each} for each trial"
    columns = ["ASHA, 12 trials, two at once", "Found"]
    return table(columns, rows) + source({**found, "machine": machine})


def _ends(low: float, high: float) -> str:
    return f" [{low:.3f}, {high:.3f}]"


# Faults

SCENARIOS = {
    "worker-kill": "a worker is killed",
    "power-off": "a host loses power",
    "partition-alone": "a host is cut off for 60 s and comes back",
    "one-way-loss": "a host's outgoing packets are lost",
    "drain": "a host drains, SIGTERM 30 s later",
    "sigterm": "a host is shut down by SIGTERM",
    "driver-kill": "the driver is killed; the same command again",
    "job-stop": "`ray job stop`; the same command again",
    "elastic": "one of two workers leaves and comes back (`--num-workers 1:2`)",
    "head-restart": "the head loses power and comes back empty; the same command again",
    "power-off-fsdp": "a host of an fsdp run loses power",
    "power-off-zero2": "a host of a ZeRO-2 run loses power",
    "power-off-zero3": "a host of a ZeRO-3 run loses power",
}


def faults() -> str:
    """List how runs recover from faults of nodes."""
    found, strategies = load("cluster"), load("cluster-strategies")
    rows = [
        [
            SCENARIOS[name],
            *(
                f"{scenario[key]:.1f}" if key in scenario else ""
                for key in ("detected_seconds", "recovered_seconds")
            ),
            "yes" if scenario["weights_equal"] else "no",
        ]
        for name, scenario in {**found["scenarios"], **strategies["scenarios"]}.items()
        if name in SCENARIOS
    ]
    columns = ["Fault", "Seconds until the driver knew", "Until it trained again", "Same bits"]
    command, _, again = found["command"].partition("; ")
    repeated = (
        "The row of the head was measured again by `python tests/hosts/run.py --only head-restart`, after "
        "a fix of the test (commit c3fbece).\n"
        if "head-restart" in again
        else ""
    )
    return table(columns, rows) + source({**found, "command": command}, strategies) + repeated


# Serving


def serving() -> str:
    """Compare serving throughput and latency with the references."""
    names = {
        "ours, torch": ("serving-sst2", "ours"),
        "ours, OpenVINO float32": ("serving-sst2-openvino", "ours"),
        "ours, OpenVINO bfloat16": ("serving-sst2-bfloat16", "ours"),
        "`@serve.batch`": ("serving-sst2", "batch"),
        "FastAPI + `pipeline`": ("serving-sst2", "pipeline"),
    }
    results = {file: load(file) for file, _ in names.values()}
    rows: list[list[str]] = []
    for clients in (1, 32, 64):
        row = [str(clients)]
        for file, server in names.values():
            runs = [run for run in results[file]["runs"]
                    if run["server"] == server and run["clients"] == clients]  # fmt: skip
            row.append(", ".join(f"{statistics.median(run[key] for run in runs):.0f}"
                                 for key in ("per_second", "p50_ms", "p99_ms")))  # fmt: skip
        rows.append(row)
    for peer, label in (("pipeline", "times `pipeline`"), ("batch", "times `@serve.batch`")):
        cells = []
        for file, server in names.values():
            summary = results[file]["summary"] if server == "ours" else {}
            ratios = [
                summary.get(f"ours_{clients}", {}).get(f"times_{peer}") for clients in (32, 64)
            ]
            cells.append(", ".join(f"{ratio:.2f}" for ratio in ratios if ratio))
        rows.append([f"{label}, 32 and 64", *cells])
    columns = ["Clients: requests per second, p50, p99 in ms", *names]
    return table(columns, rows) + source(*results.values())


def engines() -> str:
    """Compare engines with Torch in float32."""
    found = load("engines")
    rows = [
        [
            f"{engine['engine']} {engine['dtype']}",
            f"{engine['torch_one_ms'] / engine['one_ms']:.2f}",
            f"{engine['rows_per_second'] / engine['torch_rows_per_second']:.2f}",
            engine["changed_answers"],
            f"{engine['score']:.4f}",
            f"{engine['neighbors']:.1g}",
        ]
        for engine in found["engines"]
        if "one_ms" in engine
    ]
    columns = ["Engine", "Times Torch, one row", "Many rows", "Answers changed", "F1",
               "Largest influence of neighbors"]  # fmt: skip
    return table(columns, rows) + source(found)


def start_up() -> str:
    """List the seconds from the command to a server's first answer."""
    found = load("ready")
    models = {
        name: model for name, model in found.items() if isinstance(model, dict) and "runs" in model
    }
    # Before 2026-12 the points before the answer were not measured.
    points = {
        key: label for key, label in {
            "ray": "Seconds until Ray starts",
            "replica": "Replica starts",
            "gateway": "Gateway answers",
            "seconds": "Seconds to the first answer",
            "load_seconds": "Of them loading",
        }.items() if all(key in run for model in models.values() for run in model["runs"])
    }  # fmt: skip
    rows = [
        [name, f"{model['parameters'] / 1e6:.0f}",
         *(f"{statistics.median(run[key] for run in model['runs']):.1f}" for key in points)]
        for name, model in models.items()
    ]  # fmt: skip
    return table(["Model", "Million parameters", *points.values()], rows) + source(found)


def hurt() -> str:
    """List failed requests and latencies during disturbances of a server."""
    columns = ["What happens under load", "Requests", "Not 200", "p99, ms", "Longest, ms"]
    names = {"swap": "versions swapped", "kill": "replicas killed", "redeploy": "redeployments",
             "drip_60": "60 slow clients", "drip_400": "400 slow clients"}  # fmt: skip
    found = load("hurt-serving")[0]
    rows = []
    for key, label in names.items():
        cell = found["results"][key]
        number = cell.get(f"{key}s", "")
        failed = cell["requests"] - cell["by_status"].get("200", 0)
        rows.append([f"{number} {label}".strip(), f"{cell['requests']:,}", failed,
                     f"{cell['p99_ms']:.0f}", f"{cell['max_ms']:.0f}"])  # fmt: skip
    return table(columns, rows) + source(found)


def kills() -> str:
    """Count the kills of sweeps, suites and a server, with their outcomes."""
    found = load("random-kills")
    rows = []
    for kind in ("sweep", "suite"):
        if kind not in found:
            continue
        count = Counter(kill["victim"] for kill in found[kind]["kills"])
        killed = ", ".join(f"{number} x {victim}" for victim, number in sorted(count.items()))
        same = f"all {found[kind]['compared']} ended with the bits of one that nothing interrupted"
        rows.append([f"a {kind} of {found[kind]['undisturbed_seconds']:.0f} s", killed, same])
    for part in ("replica", "gateway", "proxy", "controller", "all"):
        seconds = [
            k["served_again_seconds"] for k in found["server"]["kills"] if k["killed"] == part
        ]
        failed = sum(n for code, n in found["server"]["by_status"][part].items() if code != "200")
        again = f"ten right answers in a row after {max(seconds):.1f} s at most"
        rows.append([f"a server: {part}", str(len(seconds)), f"{again}; {failed:,} not answered"])
    columns = ["Killed by SIGKILL", "Kills", "Outcome"]
    return table(columns, rows) + source(*found.values())


def overload() -> str:
    """List throughput beyond capacity."""
    rows = []
    results = {
        "Ray's fast ingress": load("hurt-haproxy")[0],
        "Serve's own proxy": load("hurt-serving")[0],
    }
    for ingress, found in results.items():
        for times in (2, 5, 10):
            cell = found["results"][f"overload_{times}"]
            rows.append([ingress, times, f"{cell['goodput_over_capacity']:.2f}",
                         f"{cell['p99_ms'] / 1000:.1f}", f"{cell['recovery_s']:.1f}"])  # fmt: skip
    columns = ["Ingress", "Times capacity", "Goodput over capacity", "p99 of accepted, s",
               "Seconds to recover"]  # fmt: skip
    return table(columns, rows) + source(*results.values())


def soak() -> str:
    """List the memory of each process over an hour of requests."""
    found = load("soak-serving")
    rows = [
        [name.rsplit(" ", 1)[0],
         *(f"{growth[key]:.1f}" for key in ("first_mib", "half_way_mib", "last_mib", "mib_an_hour"))]
        for name, growth in found["growth"].items()
    ]  # fmt: skip
    answered = ", ".join(f"{count:,} × {status}" for status, count in found["by_status"].items())
    columns = ["Process", "MiB at first", "Half-way", "At the end", "Growth, MiB an hour"]
    return table(columns, rows) + f"\nAnswers: {answered}.\n" + source(found)


def dashboard() -> str:
    """List the seconds until the dashboard's pages are open."""
    found = load("dashboard")
    names = {"runs_1000": "1,000 runs", "sweep_200": "a sweep of 200 trials"}
    rows = [
        [label, *(f"{found[key][part]['median']:.2f}" for part in ("load", "first_figure"))]
        for key, label in names.items()
    ]
    return table(["Page", "Seconds to open", "To the first figure"], rows) + source(found)


TABLES: dict[str, Callable[[], str]] = {
    **statistics_tables.TABLES,
    "steps": steps,
    "step-means": step_means,
    "duration": duration,
    "first-step": first_step,
    "first-minutes": first_minutes_table,
    "quickstart": quickstart,
    "memory": memory,
    "size": size,
    "tokenization": tokenization,
    "quality": quality,
    "unbalanced": unbalanced,
    "workers": workers,
    "ray-overhead": ray_overhead,
    "scaling-assumptions": scaling_assumptions,
    "scaling-machines": scaling_machines,
    "scaling-model": scaling_model,
    "large-models": large_model,
    "lost-work": lost_work,
    "gpu": gpu_table,
    "strategies": strategies,
    "strategy-matrix": strategy_matrix,
    "one-sweep": one_sweep,
    "faults": faults,
    "serving": serving,
    "engines": engines,
    "start-up": start_up,
    "hurt": hurt,
    "kills": kills,
    "overload": overload,
    "soak": soak,
    "dashboard": dashboard,
    "ports": ports,
}

PLACES: Mapping[str, Mapping[str, Callable[[], str]]] = {"table": TABLES, "transcript": EXCERPTS}
"""Texts by the kind and the name of a place."""


def main() -> None:
    """Rewrite the pages named on the command line."""
    for path in map(Path, sys.argv[1:]):
        path.write_text(rewrite(path.read_text()))


if __name__ == "__main__":
    main()
