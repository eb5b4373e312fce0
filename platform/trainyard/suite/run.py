"""`run_suite`: every (task, seed) an ordinary `fit`, as many at once as the cluster holds."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainyard.cluster import ray_session
from trainyard.config import TrainConfig
from trainyard.errors import Interrupted, UserError
from trainyard.files import write_atomic, write_json
from trainyard.lease import Lease
from trainyard.progress import StopSignals, say
from trainyard.runs import RunFolder
from trainyard.splits import split_rows
from trainyard.suite.config import SuiteConfig
from trainyard.suite.page import page
from trainyard.suite.runner import Outcomes, do_runs, job_of
from trainyard.suite.submission import check_submission, write_submission
from trainyard.suite.table import as_markdown, summary
from trainyard.tasks import get_task
from trainyard.training import finished_run
from trainyard.versions import versions


def run_suite(config: SuiteConfig) -> dict[str, Any]:
    """Do what is left to do, then write the table; returns the last line that the job prints.

    A run that fails takes no other along: the table is made of the rest.

    Raises:
        UserError: when runs failed (after the table is written), or for flags that cannot work.
        Interrupted: after SIGTERM or Ctrl-C, when every run is saved.
    """
    started = time.monotonic()
    if config.check_submission:
        return _checked(Path(config.check_submission))
    folder = RunFolder(config.folder)
    folder.create()
    with Lease(folder.path), StopSignals(folder.stop_request) as signals:
        configs = {
            run.resolved_run_name: run
            for task in config.tasks
            for seed in config.seeds
            for run in [config.run_config(task, seed)]
        }
        outcomes = Outcomes()
        for name, run in configs.items():
            if (done := finished_run(run)) is not None:
                outcomes.finished[name] = asdict(done)
        if outcomes.finished:
            say(f"{len(outcomes.finished)} of {len(configs)} runs are finished already")
        jobs = {name: job_of(config, run) for name, run in configs.items()}
        left = [job for name, job in jobs.items() if name not in outcomes.finished]
        extra: dict[str, Any] = {}
        if left or config.submission:
            with ray_session(next(iter(configs.values()))):
                do_runs(config, configs, left, outcomes, folder, signals)
                found = _write_table(config, configs, outcomes)
                if outcomes.stopped:
                    raise Interrupted(
                        f"{len(outcomes.stopped)} run(s) of {config.run_name} are saved; the same "
                        "command goes on",
                        signals.exit_status,
                    )
                if config.submission:
                    extra["submission"] = write_submission(config, outcomes.finished)
        else:
            found = _write_table(config, configs, outcomes)
    if outcomes.failed:
        name, reason = next(iter(outcomes.failed.items()))
        raise UserError(
            f"{len(outcomes.failed)} of {len(configs)} runs failed, {name} of them: {reason}; the "
            f"others are in {config.folder / 'glue.md'}, and the same command does the failed again"
        )
    return {
        "job": "glue",
        "run": config.run_name,
        "task": "glue",
        "score": found["average"]["mean"],
        "metrics": {row["task"]: row["score"]["mean"] for row in found["tasks"]},
        "model": config.model_name_or_path,
        "seconds": round(time.monotonic() - started, 2),
        "table": str(config.folder / "glue.md"),
        **extra,
    }


def _write_table(
    config: SuiteConfig, configs: Mapping[str, TrainConfig], outcomes: Outcomes
) -> dict[str, Any]:
    """glue.json and glue.md in the suite's folder; returns what glue.json holds."""
    rows = {
        task: {
            split: split_rows(config.run_config(task, config.seeds[0]), split)
            for split in ("train", *get_task(task).evaluation_splits)
        }
        for task in config.tasks
    }
    found = summary(configs, outcomes.finished, outcomes.failed, rows)
    found = {"model": config.model_name_or_path, **found, "versions": versions()}
    write_json(config.folder / "glue.json", found)
    write_atomic(config.folder / "glue.md", as_markdown(found))
    write_atomic(config.folder / "glue.html", page(found))
    return found


def _checked(path: Path) -> dict[str, Any]:
    faults = check_submission(path)
    for fault in faults:
        say(fault)
    if faults:
        raise UserError(f"{path} would be refused: {len(faults)} fault(s), the first: {faults[0]}")
    return {"job": "glue", "submission": str(path), "faults": []}
