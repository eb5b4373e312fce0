"""`examine_data`: every check on every split of a data set, and what the doctor says about it."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.cluster import ray_session
from trainyard.data import Splits, prepare
from trainyard.doctor.data.balance import balance, drift
from trainyard.doctor.data.config import DataDoctorConfig
from trainyard.doctor.data.duplicates import contradictions, duplicates
from trainyard.doctor.data.findings import findings
from trainyard.doctor.data.labels import suspicious_labels
from trainyard.doctor.data.page import page
from trainyard.doctor.data.rows import Rows, all_splits, read
from trainyard.doctor.data.texts import faulty_texts
from trainyard.models import build_tokenizer
from trainyard.storage import JobFolder, storage_folder, versions, write_atomic, write_json
from trainyard.tasks import Task
from trainyard.terminal import say


@dataclass(frozen=True)
class Examination:
    """What was found; `report` is what doctor.json holds."""

    folder: Path
    report: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The last line that the job prints."""
        grave = [f["sentence"] for f in self.report["findings"] if f["severity"] == "grave"]
        return {
            "job": "doctor_data",
            "run": self.folder.name,
            "task": self.report["task"],
            "grave": grave,
            "notices": len(self.report["findings"]) - len(grave),
            "rows": {name: found["rows"] for name, found in self.report["rows"].items()},
            "seconds": self.report["seconds"],
            "report": str(self.folder / "report.html"),
        }


def examine_data(config: DataDoctorConfig) -> Examination:
    """Look at all splits; say what was found, and write doctor.json and report.html.

    What cannot be told of a split without rows or labels is left out.

    Raises:
        UserError: for data that cannot be read at all.
    """
    started = time.monotonic()
    splits, absent = all_splits(config)
    folder = JobFolder(storage_folder(config.storage_path) / config.resolved_run_name)
    folder.create()
    for note in (*splits.notes, *(f"{name} is absent and not looked at" for name in absent)):
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
        say(f"{finding['severity']}: {finding['sentence']}")
    return Examination(folder.path, report)


def _timed(clock: dict[str, float], name: str, check: Any) -> Any:
    began = time.monotonic()
    found = check()
    clock[name] = round(time.monotonic() - began, 2)
    return found


def _missing_labels(task: Task, rows: Rows) -> int:
    """Rows without label; of a test split GLUE withholds all, and misses none."""
    withheld = rows.name in task.test_splits and not rows.labeled
    return 0 if withheld else int((~rows.known).sum())


def _truncation(splits: Splits, config: DataDoctorConfig, folder: Path) -> dict[str, Any]:
    """What tokenization cuts off, by tables as training makes them: they stay in the cache."""
    with ray_session(config):
        data = prepare(splits, build_tokenizer(config), config, folder.parent / ".cache")
    found = {}
    for name in data.folders:
        table = data.table(name)
        quantiles = np.quantile(table.lengths, [0.5, 0.95, 0.99, 1.0])
        found[name] = {
            "rows": len(table),
            "truncated_rows": int(table.info["truncated_rows"]),
            "lost_tokens": int(table.info["lost_tokens"]),
            "tokens": {
                q: int(v) for q, v in zip(("50%", "95%", "99%", "max"), quantiles, strict=True)
            },
        }
    return found
