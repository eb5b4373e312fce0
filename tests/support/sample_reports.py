"""Pages of an evaluation and a suite from made-up figures, built in a second."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.glue.config import SuiteConfig
from trainyard.glue.report import page as suite_page
from trainyard.glue.table import summary
from trainyard.tasks import get_task

evaluation: Any = importlib.import_module("trainyard.evaluation.run")


def evaluation_page(rows: int = 400, data_name: str = "mnli") -> str:
    """Build the page of a three-class classifier with an accuracy of about 80 %."""
    rng = np.random.default_rng(0)
    task = get_task("mnli")
    labels = rng.integers(0, 3, rows)
    logits, other = (
        (np.eye(3)[labels] * 2 + rng.normal(0, noise, (rows, 3))).astype(np.float32)
        for noise in (1.3, 1.5)
    )
    worst = evaluation.worst_rows(task, logits, labels, 20)
    split: dict[str, Any] = {
        "rows": rows,
        "truncated_rows": 7,
        **evaluation.score(task, logits, labels, seed=0, groups=None),
        "classes": evaluation.per_class(task, logits, labels, seed=0),
        "confusion": evaluation.confusion(task, logits, labels),
        "slices": evaluation.slices(
            task,
            logits,
            labels,
            rng.integers(5, 60, rows),
            {"genre": ["a", "b"] * (rows // 2)},
            seed=0,
        ),
        "worst": [{**error, "text": f"A sentence, row {error['row']}."} for error in worst],
        "calibration": evaluation.calibration(
            task.problem_type, logits, labels, seed=0, selection=None
        ),
        "comparison": evaluation.compare(
            task, logits, other, labels, names=("ours", "theirs"), seed=0, selections=()
        ),
    }
    html: str = evaluation.page(
        {
            "task": "mnli", "data_name": data_name, "model": "runs/ours/model", "run": "eval-mnli",
            "against": "theirs",
            "score": split["metrics"]["accuracy"], "score_metric": "accuracy", "group_column": None,
            "max_length": 128, "stored_temperature": 1.3, "seconds": 12.3,
            "splits": {"validation_matched": split}, "notes": [], "versions": {"commit": "3a5e3e0" * 5},
        }
    )  # fmt: skip
    return html


def glue_page(storage: Path) -> str:
    """Build the page of a suite of three tasks and two seeds, in which one run failed."""
    config = SuiteConfig(tasks=("cola", "mrpc", "rte"), seeds=(1, 2), storage_path=str(storage))
    runs = {
        run.resolved_run_name: run
        for task in config.tasks
        for seed in config.seeds
        for run in [config.run_config(task, seed)]
    }
    finished = {}
    for number, (name, run) in enumerate(runs.items()):
        metrics = dict.fromkeys(get_task(run.task).metrics, 0.7 + 0.01 * number)
        spans = {metric: [0.66, 0.79] for metric in metrics}
        finished[name] = {
            "rows": {"train": 2490, "validation": 277}, "score": 0.7, "seconds": 61.5,
            "train_samples_per_second": 97.2, "metrics": {"validation": metrics},
            "intervals": {"validation": spans}, "versions": {"commit": "3a5e3e0" * 5}, "one_answer": {},
        }  # fmt: skip
    del finished["rte-seed-2"]
    failed = {"rte-seed-2": "worker 0: OSError: No space left on device"}
    return suite_page({"model": "MiniLM-L6", **summary(runs, finished, failed)})
