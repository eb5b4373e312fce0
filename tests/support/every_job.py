"""Flags of every kind of job on small data, for tests that submit jobs to a cluster."""

import re
from pathlib import Path

COMMANDS = {"doctor_data": "data-doctor"}
"""Script in jobs/ -> `trainyard` command, where the names differ."""


def every_job(shared: Path) -> dict[str, list[str]]:
    """Return the flags of each script in jobs/, by name; later jobs use the output of earlier ones.

    `shared` contains model/ and glue/, see `tiny`.
    """
    runs, model, pairs = shared / "runs", shared / "runs/trained/model", shared / "glue/mrpc"
    data = ["--data-dir", str(shared / "glue"), "--storage-path", str(runs)]
    short = [*data, "--model-name-or-path", str(shared / "model"), "--max-length", "32",
             "--max-steps", "4", "--resources-per-worker", "CPU", "1"]  # fmt: skip
    train = [*short, "--task", "mrpc", "--num-workers", "2"]
    return {
        "doctor": train,
        "train": [*train, "--run-name", "trained"],
        "eval": [*data, "--model-name-or-path", str(model), "--run-name", "evaluated",
                 "--num-workers", "2"],
        "predict": ["--model-name-or-path", str(model), "--input-file",
                    str(pairs / "validation.parquet"), "--text-column", "sentence1",
                    "--text-pair-column", "sentence2", "--output-file", str(shared / "scored.jsonl")],
        "engine": [*data[:2], "--model-name-or-path", str(model), "--num-rows", "20", "--threads", "1"],
        "doctor_data": [*data, "--task", "mrpc", "--model-name-or-path", str(shared / "model"),
                        "--run-name", "examined", "--max-length", "32"],
        "tune": [*short, "--task", "mrpc", "--num-trials", "2", "--scheduler", "fifo",
                 "--confirm-seeds", "0", "--run-name", "sweep"],
        "glue": [*short, "--tasks", "mrpc", "--seeds", "1", "--run-name", "suite"],
        "quickstart": ["--max-steps", "4", "--storage-path", str(runs)],
        "dashboard": ["--storage-path", str(runs), "--export", "sweep", "--output",
                      str(shared / "sweep.html")],
    }  # fmt: skip


def check_answer(job: str, said: str) -> None:
    """Assert that the output of `ray job submit` has the job's JSON line."""
    name = {"quickstart": "train"}.get(job, job)  # it prints the result of its run
    assert re.search(rf'^\{{"job": "{name}".*\}}$', said, re.MULTILINE), said[-4000:]


def check_files(shared: Path) -> None:
    """Assert that all jobs of `every_job` together wrote their files."""
    assert len((shared / "scored.jsonl").read_text().splitlines()) == 37
    assert "<html" in (shared / "sweep.html").read_text()
