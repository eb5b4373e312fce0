"""Run every check on every split of a data set, and write the report."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.cluster import ray_session
from trainyard.config import DEFAULT_MODEL, ClusterFlags, DataFlags, ModelFlags, RunFlags
from trainyard.data import Splits, prepare
from trainyard.doctor.data.duplicates import contradictions, duplicates, faulty_rows
from trainyard.doctor.data.labels import balance, drift, suspicious_labels
from trainyard.doctor.data.report import findings, page
from trainyard.doctor.data.rows import Rows, all_splits, faulty_texts, read
from trainyard.errors import UserError
from trainyard.models import build_tokenizer
from trainyard.storage import JobFolder, storage_folder, versions, write_atomic, write_json
from trainyard.summary import Readable
from trainyard.tasks import Task, check_data_dir, get_task
from trainyard.terminal import progress_bar, say, stage

CHECKS = 5
"""Number of checks that take long, which the progress bar counts."""


@dataclass(frozen=True, kw_only=True)
class DataDoctorConfig(RunFlags, ClusterFlags, ModelFlags, DataFlags):
    """Examine a data set for faults.

    It reports leaks between splits, duplicates, contradicting and suspicious labels, empty and
    truncated rows, imbalance and drift. The data flags are the same as in `trainyard train`.
    """

    model_name_or_path: str = DEFAULT_MODEL
    """Model whose tokenizer counts the truncated tokens."""
    max_length: int = 128
    """Maximum tokens per row in training."""
    near_duplicate_similarity: float = 0.8
    """Minimum Jaccard similarity of the words of two near duplicates."""
    num_examples: int = 50
    """Maximum rows listed for each kind of finding."""
    seed: int = 42
    """Seed of the cross-validation folds and of the held-out rows."""

    run_name: str | None = None
    """Folder of the report. Default: doctor, task and a hash of the flags."""
    address: str | None = None
    """Ray cluster to tokenize on. Default: RAY_ADDRESS, or a local Ray for this job."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.near_duplicate_similarity <= 1:
            raise UserError(
                f"--near-duplicate-similarity is {self.near_duplicate_similarity}; it must lie "
                "between 0.5 and 1 (typically 0.8)"
            )
        check_data_dir(get_task(self.task), self.data_dir)

    @property
    def resolved_run_name(self) -> str:
        return self.name_after(f"doctor-{self.source}")


@dataclass(frozen=True, repr=False)
class Examination(Readable):
    """Result of `examine_data`; `report` is the content of doctor.json."""

    folder: Path
    report: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the job's JSON result; for one release, `severe` also has its former key."""
        severe = [f["sentence"] for f in self.report["findings"] if f["level"] == "severe"]
        return {
            "job": "doctor_data",
            "run": self.folder.name,
            "task": self.report["task"],
            "data_name": self.report["data_name"],
            "grave": severe,
            "severe": severe,
            "notices": len(self.report["findings"]) - len(severe),
            "rows": {name: counts["rows"] for name, counts in self.report["rows"].items()},
            "seconds": self.report["seconds"],
            "report": str(self.folder / "report.html"),
        }


def examine_data(config: DataDoctorConfig) -> Examination:
    """Examine all splits, print the findings, and write doctor.json and report.html.

    Checks that need rows or labels are left out for a split that has none.

    Raises:
        UserError: The data or the tokenizer cannot be read, or the folder cannot be written.
    """
    started = time.monotonic()
    stage(f"reading {config.data_name}")
    splits, absent = all_splits(config)
    tokenizer = build_tokenizer(config)
    folder = JobFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    with folder.created():
        return _examine(config, folder, splits, absent, tokenizer, started)


def _examine(
    config: DataDoctorConfig,
    folder: JobFolder,
    splits: Splits,
    absent: list[str],
    tokenizer: Any,
    started: float,
) -> Examination:
    for note in (*splits.notes, *(f"{name} is absent and not examined" for name in absent)):
        say(note)
    seconds: dict[str, float] = {}
    task, n, similarity = splits.task, config.num_examples, config.near_duplicate_similarity

    def timed(name: str, found: Any) -> Any:
        """Record the seconds since the last check under `name`; return the result `found`."""
        seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 2)
        return found

    every = timed("reading", [read(split, task) for split in splits.splits])
    train, *others = every
    pairs = [(train, rows) for rows in others if len(train) and len(rows)]
    tokenized = [split for split, rows in zip(splits.splits, every, strict=True) if len(rows)]
    regression = task.problem_type == "regression"
    truncation = timed(
        "truncation", _truncation(replace(splits, splits=tokenized), tokenizer, config, folder.path)
    )
    bar = progress_bar(CHECKS, unit="check", title="examine")

    def checked(name: str, found: Any) -> Any:
        bar.update()
        return timed(name, found)

    report: dict[str, Any] = {
        "job": "doctor_data",
        "run": folder.path.name,
        "task": task.name,
        "data_name": config.data_name,
        "label_names": list(task.labels or ()),
        "max_length": config.max_length,
        "absent": absent,
        "rows": {
            rows.name: {"rows": len(rows), "missing_labels": _missing_labels(task, rows)}
            for rows in every
        },
        "duplicates": checked("duplicates", duplicates(every, similarity, n)),
        "contradictions": checked("contradictions", contradictions(every, regression, n)),
        "texts": checked("texts", faulty_texts(every, n)),
        "truncation": truncation,
        "balance": balance(task, every),
        "drift": checked("drift", [drift(task, *pair, seed=config.seed) for pair in pairs]),
        "labels": {
            "split": train.name,
            **checked("labels", suspicious_labels(task, train, seed=config.seed, examples=n)),
        },
        "cleaned": _write_cleaned(folder.path, config, task, train, others),
        "versions": versions(),
    }
    bar.close()
    report["findings"] = findings(report)
    report["seconds_of"] = seconds
    report["seconds"] = round(time.monotonic() - started, 2)
    write_json(folder.path / "doctor.json", report)
    write_atomic(folder.path / "report.html", page(report))
    for finding in report["findings"]:
        say(f"{finding['level']}: {finding['sentence']}")
    if report["cleaned"]:
        say(f"{report['cleaned']['file']} has the rows of {train.name} without severe faults")
    return Examination(folder.path, report)


def _write_cleaned(
    folder: Path, config: DataDoctorConfig, task: Task, train: Rows, others: Sequence[Rows]
) -> dict[str, Any] | None:
    """Write the training rows without faults and repeats as JSON Lines; return report facts.

    Returns None, and writes no file, if all rows or no rows remain.
    """
    faults = faulty_rows(train, others, regression=task.problem_type == "regression")
    removed = np.any(list(faults.values()), axis=0)
    path = folder / f"{train.name}-cleaned.jsonl"
    if removed.all() or not removed.any():
        path.unlink(missing_ok=True)
        return None
    names = task.text_columns
    lines = [
        json.dumps({**dict(zip(names, texts, strict=True)), task.label_column: _named(task, label)})
        for texts, label, left_out in zip(train.exact, train.labels, removed, strict=True)
        if not left_out
    ]
    # --encoding is one for all files, and the validation file may need it.
    write_atomic(
        path, "\n".join(lines) + "\n", config.encoding if config.validation_file else "utf-8"
    )
    first = np.argmax(list(faults.values()), axis=0)[removed]
    counts = Counter(list(faults)[reason] for reason in first.tolist())
    return {
        "file": path.name,
        "split": train.name,
        "rows": len(lines),
        "removed": {reason: counts[reason] for reason in faults},
        "command": shlex.join(_train_command(path, config, task)),
    }


def _train_command(path: Path, config: DataDoctorConfig, task: Task) -> list[str]:
    """Build the command that trains on the cleaned file `path`, and reads the validation file."""
    names = task.text_columns
    flags = {"text-column": names[0], "text-pair-column": names[1] if len(names) > 1 else None,
             "label-column": task.label_column, "problem-type": task.problem_type,
             "split-version": config.split_version}  # fmt: skip
    command = ["trainyard", "train", "--train-file", str(path)]
    if config.validation_file:  # the cleaned file needs none of these any more
        flags |= {"validation-file": config.validation_file, "delimiter": config.delimiter}
        flags |= {"encoding": config.encoding} if config.encoding != DataFlags.encoding else {}
        command += ["--merge-similar-labels"] if config.merge_similar_labels else []
        command += ["--drop-labels", *config.drop_labels] if config.drop_labels else []
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)] if value else []
    return command


def _named(task: Task, label: Any) -> str | list[str] | float:
    """Convert a label to the form of user files: a class name, a list of names, or a target."""
    if not task.labels:
        return float(label)
    if task.problem_type == "multi_label_classification":
        return [name for name, on in zip(task.labels, label.tolist(), strict=True) if on]
    return task.labels[int(label)]


def _missing_labels(task: Task, rows: Rows) -> int:
    """Count the rows without a label; 0 for a test split whose labels are all withheld."""
    withheld = rows.name in task.test_splits and not rows.labeled
    return 0 if withheld else int((~rows.has_label).sum())


def _truncation(
    splits: Splits, tokenizer: Any, config: DataDoctorConfig, folder: Path
) -> dict[str, Any]:
    stage("tokenizing, for which Ray starts")
    with ray_session(config):
        data = prepare(splits, tokenizer, config, folder.parent / ".cache")
    truncation = {}
    for name in data.folders:
        table = data.table(name)
        quantiles = np.quantile(table.lengths, [0.5, 0.95, 0.99, 1.0])
        truncation[name] = {
            "rows": len(table),
            "truncated_rows": int(table.info["truncated_rows"]),
            "lost_tokens": int(table.info["lost_tokens"]),
            "tokens": {
                q: int(v) for q, v in zip(("50%", "95%", "99%", "max"), quantiles, strict=True)
            },
        }
    return truncation
