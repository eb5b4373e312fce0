"""Measure memory and time by the number of rows: the same short run on 100,000 and 1,000,000 rows.

    python benchmarks/scale.py --rows 100000 1000000

The rows are the demo's, as a Parquet file for --train-file. Memory is the peak sum of the
proportional set sizes of the driver and its descendants: Ray's processes and the workers. These
sizes divide shared pages among their users. Each kind has its own peak. `anon` is private memory,
`shmem` is Ray's object store. `file` is touched pages of mapped files (libraries, the token table),
which the system may reclaim.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from provenance import provenance

from trainyard.data.demo import generate

HERE = Path(__file__).parent
BLOCK = 50_000
KINDS = ("anon", "shmem", "file")


def write_rows(path: Path, rows: int) -> None:
    """Write the demo's first `rows` training pairs to a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["sentence1", "sentence2", "label"]
    source = generate("train", rows)
    schema = pa.schema([(names[0], pa.string()), (names[1], pa.string()), (names[2], pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, BLOCK):
            block = [next(source) for _ in range(min(BLOCK, rows - start))]
            columns = [list(column) for column in zip(*block, strict=True)]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema=schema))


def run_measured(command: list[str]) -> dict[str, Any]:
    """Run a job; return its seconds, throughput and the peak memory of its processes in MiB."""
    started = time.monotonic()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    root, peaks = psutil.Process(job.pid), dict[str, float]()
    while job.poll() is None:
        sizes = [_memory(process.pid) for process in [root, *_descendants(root)]]
        now = {kind: sum(size[kind] for size in sizes) for kind in KINDS}
        now |= {"all": sum(now.values()), "largest_process": max(sum(s.values()) for s in sizes)}
        peaks = {kind: max(size, peaks.get(kind, 0)) for kind, size in now.items()}
        time.sleep(1)
    if job.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {job.returncode}")
    assert job.stdout is not None
    result = json.loads(job.stdout.read().splitlines()[-1])
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_mib": {kind: round(size) for kind, size in peaks.items()},
        "train_samples_per_second": result["train_samples_per_second"],
        "padding_efficiency": result["padding_efficiency"],
    }


def _memory(pid: int) -> dict[str, float]:
    """Return the MiB of a process by kind; zeros if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return dict.fromkeys(KINDS, 0.0)
    found = {name: int(size.split()[0]) / 1024 for name, size in (x.split(":") for x in lines)}
    return {kind: found[f"Pss_{kind.title()}"] for kind in KINDS}


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return list(root.children(recursive=True))
    except psutil.Error:
        return []


def main() -> None:
    """Make one run per number of rows; store the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--max-steps", type=int, default=10)
    args = parser.parse_args()
    found = {}
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            train, validation = Path(folder) / "train.parquet", Path(folder) / "validation.parquet"
            write_rows(train, rows)
            write_rows(validation, 200)
            found[rows] = run_measured(
                [sys.executable, str(HERE.parent / "jobs/train.py"), "--train-file", str(train),
                 "--validation-file", str(validation), "--text-column", "sentence1",
                 "--text-pair-column", "sentence2", "--label-column", "label",
                 "--max-steps", str(args.max_steps), "--storage-path", folder]
            )  # fmt: skip
            found[rows]["file_mib"] = round(train.stat().st_size / 2**20, 1)
        print(rows, json.dumps(found[rows]), file=sys.stderr)
    result = {
        **provenance(),
        "runs": found,
    }
    (HERE / "results" / "scale.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
