"""`examine_data`: run every check on every split of a data set, and write the report."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trainyard.cluster import ray_session
from trainyard.data import Splits, prepare
from trainyard.doctor.data.balance import balance, drift
from trainyard.doctor.data.config import DataDoctorConfig
from trainyard.doctor.data.duplicates import contradictions, duplicates
from trainyard.doctor.data.findings import findings
from trainyard.doctor.data.labels import suspicious_labels
from trainyard.doctor.data.page import page
from trainyard.doctor.data.rows import Rows, all_splits, faulty_texts, read
from trainyard.models import build_tokenizer
from trainyard.storage import JobFolder, storage_folder, versions, write_atomic, write_json
from trainyard.summary import Readable
from trainyard.tasks import Task
from trainyard.terminal import say

Result = TypeVar("Result")


@dataclass(frozen=True, repr=False)
class Examination(Readable):
    """Result of `examine_data`; `report` is the content of doctor.json."""

    folder: Path
    report: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the job's JSON; `severe` also has its former name for one release."""
        severe = [f["sentence"] for f in self.report["findings"] if f["level"] == "severe"]
        return {
            "job": "doctor_data",
            "run": self.folder.name,
            "task": self.report["task"],
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
        UserError: The data cannot be read.
    """
    started = time.monotonic()
    splits, absent = all_splits(config)
    folder = JobFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    folder.create()
    for note in (*splits.notes, *(f"{name} is absent and not examined" for name in absent)):
        say(note)
    clock: dict[str, float] = {}
    task, n, regression = splits.task, config.num_examples, splits.task.problem_type == "regression"
    all_rows = _timed(clock, "reading", lambda: [read(split, task) for split in splits.splits])
    train, *others = all_rows
    tokenized = [split for split, rows in zip(splits.splits, all_rows, strict=True) if len(rows)]
    similarity = config.near_duplicate_similarity
    report: dict[str, Any] = {
        "job": "doctor_data",
        "run": folder.path.name,
        "task": task.name,
        "label_names": list(task.labels or ()),
        "max_length": config.max_length,
        "absent": absent,
        "rows": {
            rows.name: {"rows": len(rows), "missing_labels": _missing_labels(task, rows)}
            for rows in all_rows
        },
        "duplicates": _timed(clock, "duplicates", lambda: duplicates(all_rows, similarity, n)),
        "contradictions": _timed(
            clock, "contradictions", lambda: contradictions(all_rows, regression, n)
        ),
        "texts": _timed(clock, "texts", lambda: faulty_texts(all_rows, n)),
        "truncation": _timed(
            clock,
            "truncation",
            lambda: _truncation(replace(splits, splits=tokenized), config, folder.path),
        ),
        "balance": balance(task, all_rows),
        "drift": _timed(
            clock,
            "drift",
            lambda: [
                drift(task, train, rows, seed=config.seed)
                for rows in others
                if len(train) and len(rows)
            ],
        ),
        "labels": {
            "split": train.name,
            **_timed(
                clock,
                "labels",
                lambda: suspicious_labels(task, train, seed=config.seed, examples=n),
            ),
        },
        "versions": versions(),
    }
    report["findings"] = findings(report)
    report["seconds_of"] = clock
    report["seconds"] = round(time.monotonic() - started, 2)
    write_json(folder.path / "doctor.json", report)
    write_atomic(folder.path / "report.html", page(report))
    for finding in report["findings"]:
        say(f"{finding['level']}: {finding['sentence']}")
    return Examination(folder.path, report)


def _timed(clock: dict[str, float], name: str, check: Callable[[], Result]) -> Result:
    started = time.monotonic()
    result = check()
    clock[name] = round(time.monotonic() - started, 2)
    return result


def _missing_labels(task: Task, rows: Rows) -> int:
    """Count rows without a label; in a test split whose labels are all withheld, none is missing."""
    withheld = rows.name in task.test_splits and not rows.labeled
    return 0 if withheld else int((~rows.has_label).sum())


def _truncation(splits: Splits, config: DataDoctorConfig, folder: Path) -> dict[str, Any]:
    """Count truncated tokens, by the tables that training would use; they stay in the cache."""
    with ray_session(config):
        data = prepare(splits, build_tokenizer(config), config, folder.parent / ".cache")
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
