"""Run the suite: a training run for each (task, seed), concurrent where workers are free."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trainyard.cluster import (
    TOKENIZERS,
    Node,
    grows_by_itself,
    nodes_within_reach,
    ray_session,
    share_out,
)
from trainyard.config import TrainConfig
from trainyard.data import split_file, split_rows
from trainyard.errors import DamagedRun, Interrupted, UserError
from trainyard.fleet import Ended, Fleet, Job, LongestFirst, RunSpec, reason_of
from trainyard.glue.config import SuiteConfig
from trainyard.glue.report import as_markdown, page
from trainyard.glue.submission import check_submission, write_submission
from trainyard.glue.table import summary
from trainyard.signals import StopSignals
from trainyard.storage import Lease, RunFolder, SuiteFolder
from trainyard.tasks import get_task
from trainyard.terminal import say
from trainyard.training import AnotherRun, OtherBaseModel, finished_run

REPORT_SECONDS = 60.0
"""Seconds between two lines of progress in the terminal."""


@dataclass
class Outcomes:
    """Outcomes of the runs, by run name.

    Attributes:
        finished: Results of `fit`.
        failed: Reasons, one sentence each.
        stopped: Names of runs that were stopped, or never started.
    """

    finished: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    def drop(self, lost: Iterable[Job]) -> None:
        """Record jobs that cannot start because the run that they depend on did not finish."""
        for job in lost:
            if job.after in self.failed:
                self.failed[job.name] = f"it starts from {job.after}, which failed"
            else:
                self.stopped.append(job.name)


def run_suite(config: SuiteConfig) -> dict[str, Any]:
    """Train the unfinished runs, then write the table; return the job's result.

    A failed run does not stop the others. The table then has the scores of the rest. With
    `check_submission`, only check a zip.

    Raises:
        SupersededError: Another driver has taken over the suite.
        HeldError: Another driver holds the suite.
        UserError: Runs failed (after the table is written), flags cannot work, or the leaderboard
            would refuse the submission.
        Interrupted: SIGTERM or Ctrl-C stopped the suite; every run has saved its progress.
    """
    started = time.monotonic()
    if config.check_submission:
        return _checked(Path(config.check_submission))
    folder = SuiteFolder(config.folder)
    with folder.lease() as lease, StopSignals(folder.stop_request) as signals:
        configs = {
            run.resolved_run_name: run
            for task in config.tasks
            for seed in config.seeds
            for run in [config.run_config(task, seed)]
        }
        kept = _runs_in_table(config, configs, folder)
        outcomes, schedule = _plan(config, configs, kept, folder)
        if outcomes.finished:
            say(f"{len(outcomes.finished)} of {len(configs)} runs are finished already")
        extra: dict[str, Any] = {}
        if schedule.waiting or config.submission:
            with ray_session(next(iter(configs.values())), TOKENIZERS):
                if schedule.waiting:
                    train_runs(config, configs, schedule, outcomes, folder, lease, signals)
                found = _write_table(config, configs, outcomes, folder)
                if outcomes.stopped:
                    raise Interrupted(
                        f"{len(outcomes.stopped)} run(s) of {config.run_name} are still to be done, "
                        "their progress is saved; the same command resumes them",
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
            f"others are in {config.folder / 'glue.md'}, and the same command trains the failed ones again"
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
    """Return the names of the runs in the table that an earlier command wrote.

    Raises:
        UserError: This command would remove a run from the table, or change its warm start.
    """
    try:
        rows = folder.read().get("tasks", [])
        before = {
            (row["task"], seed): row["recipe"]["warm_start"]
            for row in rows
            for seed in row["seeds"]
        }
    except (DamagedRun, LookupError, TypeError):
        return set()  # an unreadable table is replaced
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


def _plan(
    config: SuiteConfig,
    configs: Mapping[str, TrainConfig],
    kept: Collection[str],
    folder: SuiteFolder,
) -> tuple[Outcomes, LongestFirst]:
    """Return the outcomes that are known before any run starts, and a schedule of the other runs.

    Args:
        config: Flags of the suite.
        configs: Config of each run, by name.
        kept: Names of the runs in an earlier table.
        folder: Folder of the suite.

    Raises:
        UserError: A run's folder was made from another config or other data, a run in `kept`
            cannot be read, or a file of --data-dir is missing.
    """
    outcomes, left = Outcomes(), []
    sources = {job: f"{source}-seed-{run.seed}" for job, run in configs.items()
               if (source := config.source_of(run.task))}  # fmt: skip
    for name, run in sorted(configs.items(), key=lambda item: item[0] in sources):
        try:
            # A run whose source must be trained is checked again after the source.
            waits = name in sources and sources[name] not in outcomes.finished
            if not waits and (done := finished_run(run)) is not None:
                outcomes.finished[name] = {**asdict(done), **_made_by(folder.run(name))}
            else:
                left.append(job_of(config, run))
        except OtherBaseModel as error:
            raise UserError(
                f"{reason_of(error, folder.run(name).path)}, or choose another --run-name; the table of "
                f"suite '{config.run_name}' stays as it is"
            ) from error
        except AnotherRun as error:
            raise UserError(
                f"{error.problem}; choose another --run-name, and the table of suite "
                f"'{config.run_name}' stays as it is"
            ) from error
        except UserError as error:
            reason = reason_of(error, folder.run(name).path)
            if name in kept:
                raise UserError(
                    f"{name} is in the table of suite '{config.run_name}', which stays as it is, and "
                    f"cannot be read again: {reason}"
                ) from error
            outcomes.failed[name] = reason
            say(f"{name} failed: {reason}")
    _check_files(configs[job.name] for job in left)
    schedule = LongestFirst(left, outcomes.finished)
    for name in list(outcomes.failed):
        outcomes.drop(schedule.end(name, finished=False))
    return outcomes, schedule


def _check_files(runs: Iterable[TrainConfig]) -> None:
    """Check that the splits of all runs have files in --data-dir, before the first run starts.

    Raises:
        UserError: A file is missing.
    """
    for run in runs:
        task = get_task(run.task)
        for split in (task.train_split or "", *task.evaluation_splits) if run.data_dir else ():
            path = split_file(task, split, Path(run.data_dir or ""))
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist, so no run was started; put it there, leave {task.name} "
                    "out of --tasks, or leave out --data-dir for the data set on the Hub"
                )


def job_of(config: SuiteConfig, run: TrainConfig) -> Job:
    """Return the cost (training rows) and the constraints of a run, for the schedule.

    Raises:
        UserError: The file of the training split is damaged.
    """
    rows = split_rows(run, "train") or 1
    steps = -(-rows // run.train_batch_size) * run.num_train_epochs
    source = config.source_of(run.task)
    return Job(
        name=run.resolved_run_name,
        cost=min(steps, run.max_steps or steps) * run.train_batch_size,
        micro_batches=run.micro_batches_per_step,
        after=f"{source}-seed-{run.seed}" if source else None,
    )


def train_runs(
    config: SuiteConfig,
    configs: Mapping[str, TrainConfig],
    schedule: LongestFirst,
    outcomes: Outcomes,
    folder: SuiteFolder,
    lease: Lease,
    signals: StopSignals,
) -> None:
    """Start runs as workers become free, until none is left; record outcomes in `outcomes`.

    On a stop request, all running runs save and end.

    Raises:
        SupersededError: Another driver has taken over the suite.
        HeldError: A process of an ended run still holds the run's lease.
        UserError: No worker fits into the cluster, or the local Ray has ended.
    """
    first = next(iter(configs.values()))
    resources, capacity = worker_capacity(config, first, nodes_within_reach(first))
    schedule.share_out(capacity)
    fleet = Fleet(
        folder=folder,
        lease=lease,
        concurrent=capacity,
        restarts=config.max_failures,
        signals=signals,
        verbose=config.verbose,
    )

    def supply() -> RunSpec | Literal["later"] | None:
        job = schedule.start_next()
        if job is None:
            return "later" if schedule.waiting else None
        workers = schedule.workers[job.name]
        say(f"{job.name} starts on {workers} worker(s)")
        run = replace(configs[job.name], num_workers=workers, resources_per_worker=resources)
        return RunSpec(config=run, fence=folder.fence)

    def on_end(run: RunSpec, ended: Ended) -> None:
        name = str(run)
        if ended.status == "finished":
            result = {**run.folder.read()["result"], **_made_by(run.folder)}
            outcomes.finished[name] = result
            say(f"{name} is finished: score {result['score']:.4f} in {result['seconds']:.0f} s")
        elif ended.status == "stopped":
            outcomes.stopped.append(name)
        else:
            outcomes.failed[name] = str(ended.reason)
            say(f"{name} failed: {outcomes.failed[name]}")
        outcomes.drop(schedule.end(name, finished=ended.status == "finished"))

    report = _reporter(fleet, schedule)

    fleet.run(supply, report, on_end)
    outcomes.stopped += [job.name for job in schedule.waiting]


def worker_capacity(
    config: SuiteConfig, run: TrainConfig, nodes: Sequence[Node]
) -> tuple[Node, int]:
    """Return the resources of one worker, and the maximum number of concurrent workers.

    Args:
        config: Flags of the suite.
        run: Config of any run: all runs have the same kind of worker.
        nodes: Resources of each node, also of those that an autoscaler may add.

    Raises:
        UserError: No worker fits on a node, and no KubeRay autoscaler could add nodes.
    """
    needed, room = share_out(run, nodes, title="workers", growing=grows_by_itself())
    if config.use_gpu and not config.resources_per_worker:
        needed["CPU"] = max(needed["CPU"] - 1, 1.0)  # one CPU of each GPU's share feeds the GPU
    return needed, max(min(room, config.max_parallel_workers or room), 1)


def _made_by(run: RunFolder) -> dict[str, Any]:
    known = run.read()
    return {"versions": known.get("versions", {}), "one_answer": known.get("one_answer", {})}


def _reporter(fleet: Fleet, schedule: LongestFirst) -> Callable[[], bool]:
    reported = time.monotonic()

    def report() -> bool:
        nonlocal reported
        if time.monotonic() - reported < REPORT_SECONDS:
            return False
        reported = time.monotonic()
        parts = [
            f"{run} {at['step']}/{at['last_step']}"
            if (at := run.folder.progress())
            else f"{run} starting"
            for run in list(fleet.running.values())
        ]
        say(f"running: {', '.join(parts)}; {len(schedule.waiting)} waiting")
        return False

    return report


def _write_table(
    config: SuiteConfig, configs: Mapping[str, TrainConfig], outcomes: Outcomes, folder: SuiteFolder
) -> dict[str, Any]:
    found = summary(configs, outcomes.finished, outcomes.failed)
    found = {"model": config.model_name_or_path, **found}
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
