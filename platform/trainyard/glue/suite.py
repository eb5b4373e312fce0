"""`run_suite`: every (task, seed) an ordinary `fit`, as many at once as the cluster holds."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainyard.cluster import TOKENIZERS, ray_session
from trainyard.config import TrainConfig
from trainyard.errors import DamagedRun, Interrupted, UserError
from trainyard.glue.config import SuiteConfig
from trainyard.glue.page import page
from trainyard.glue.runner import Outcomes, do_runs, job_of, reason_of, without_orphans
from trainyard.glue.schedule import Job
from trainyard.glue.submission import check_submission, write_submission
from trainyard.glue.table import as_markdown, summary
from trainyard.storage import SuiteFolder, versions
from trainyard.terminal import StopSignals, say
from trainyard.training import AnotherRun, finished_run


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
    folder = SuiteFolder(config.folder)
    folder.create()
    with folder.lease(), StopSignals(folder.stop_request) as signals:
        configs = {
            run.resolved_run_name: run
            for task in config.tasks
            for seed in config.seeds
            for run in [config.run_config(task, seed)]
        }
        kept = _runs_in_table(config, configs, folder)
        outcomes, left = _what_is_left(config, configs, kept)
        if outcomes.finished:
            say(f"{len(outcomes.finished)} of {len(configs)} runs are finished already")
        extra: dict[str, Any] = {}
        if left or config.submission:
            with ray_session(next(iter(configs.values())), TOKENIZERS):
                do_runs(config, configs, left, outcomes, folder, signals)
                found = _write_table(config, configs, outcomes, folder)
                if outcomes.stopped:
                    raise Interrupted(
                        f"{len(outcomes.stopped)} run(s) of {config.run_name} are still to be done, what "
                        "they had done is saved; the same command goes on",
                        signals.exit_status,
                    )
                if config.submission:
                    extra["submission"] = write_submission(config, outcomes.finished)
        else:
            found = _write_table(config, configs, outcomes, folder)
    if outcomes.failed:
        name, reason = next(iter(outcomes.failed.items()))
        raise UserError(
            f"{len(outcomes.failed)} of {len(configs)} runs failed, {name} of them: {reason}; the "
            f"others are in {config.folder / 'glue.md'}, and the same command does the failed again"
        )
    if config.submission:
        _refuse(Path(extra["submission"]["zip"]), extra["submission"]["faults"])
    return {
        "job": "glue",
        "run": config.run_name,
        "task": "glue",
        "score": None if (mean := found["average"]["mean"]) is None else mean / 100,
        "metrics": {row["task"]: row["score"]["mean"] for row in found["tasks"]},
        "model": config.model_name_or_path,
        "seconds": round(time.monotonic() - started, 2),
        "table": str(config.folder / "glue.md"),
        **extra,
    }


def _runs_in_table(
    config: SuiteConfig, configs: Mapping[str, TrainConfig], folder: SuiteFolder
) -> set[str]:
    """Names of the runs in the table, if there is one.

    Raises:
        UserError: for a command that would take from it what an earlier one put there.
    """
    try:
        rows = folder.read().get("tasks", [])
        before = {
            (row["task"], seed): row["recipe"]["warm_start"]
            for row in rows
            for seed in row["seeds"]
        }
    except (DamagedRun, LookupError, TypeError):
        return set()  # it is written anew
    names = {(run.task, run.seed): name for name, run in configs.items()}
    for (task, seed), source in sorted(before.items()):
        if (task, seed) not in names:
            raise UserError(
                f"the table of suite '{config.run_name}' has {task} with seed {seed}, which this "
                "command leaves out; name it too, or choose another --run-name"
            )
        if source != config.source_of(task):
            raise UserError(
                f"the table of suite '{config.run_name}' has {task} {'with' if source else 'without'} "
                "--warm-start, which this command changes; choose another --run-name"
            )
    return {names[key] for key in before}


def _what_is_left(
    config: SuiteConfig, configs: Mapping[str, TrainConfig], kept: Collection[str]
) -> tuple[Outcomes, list[Job]]:
    """The runs that are finished, those that cannot be done, and jobs for all others.

    Raises:
        UserError: when a run's folder was made from another config or other data, or one of the `kept`,
            which are in the table, cannot be read again.
    """
    outcomes, left = Outcomes(), []
    for name, run in configs.items():
        try:
            if (done := finished_run(run)) is not None:
                outcomes.finished[name] = asdict(done)
            else:
                left.append(job_of(config, run))
        except AnotherRun as error:
            raise UserError(
                f"{error.problem}; choose another --run-name, and the table of suite "
                f"'{config.run_name}' stays as it is"
            ) from error
        except UserError as error:
            reason = reason_of(error, run)
            if name in kept:
                raise UserError(
                    f"{name} is in the table of suite '{config.run_name}', which stays as it is, and "
                    f"cannot be read again: {reason}"
                ) from error
            outcomes.failed[name] = reason
            say(f"{name} failed: {reason}")
    return outcomes, without_orphans(left, outcomes)


def _write_table(
    config: SuiteConfig,
    configs: Mapping[str, TrainConfig],
    outcomes: Outcomes,
    folder: SuiteFolder,
) -> dict[str, Any]:
    """glue.json and glue.md in the suite's folder; returns what glue.json holds."""
    found = summary(configs, outcomes.finished, outcomes.failed)
    found = {"model": config.model_name_or_path, **found, "versions": versions()}
    folder.write_table(found, as_markdown(found), page(found))
    return found


def _checked(path: Path) -> dict[str, Any]:
    faults = check_submission(path)
    for fault in faults:
        say(fault)
    _refuse(path, faults)
    return {"job": "glue", "submission": str(path), "faults": []}


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        raise UserError(
            f"the leaderboard would refuse {path}: {len(faults)} fault(s), the first: {faults[0]}"
        )
