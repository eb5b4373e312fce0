"""The runs of a suite on Ray: as many at once as fit, each in a process of its own."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trainyard.cluster import Node, cause_of, nodes_for, share_out
from trainyard.config import TrainConfig
from trainyard.data import split_rows
from trainyard.errors import DamagedRun, Interrupted, UserError
from trainyard.glue.config import SuiteConfig
from trainyard.glue.schedule import Job, startable, workers_for
from trainyard.storage import EXPIRY_SECONDS, Fence, SuiteFolder
from trainyard.terminal import StopSignals, say
from trainyard.training import fit

POLL_SECONDS = 0.5
REPORT_SECONDS = 60.0


@dataclass
class Outcomes:
    """What became of each run, by name: the result of the finished, the reason of the failed."""

    finished: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)


def do_runs(
    config: SuiteConfig,
    configs: Mapping[str, TrainConfig],
    waiting: list[Job],
    outcomes: Outcomes,
    folder: SuiteFolder,
    signals: StopSignals,
) -> None:
    """Start runs as workers get free, until none is left; a stop reaches all that are running."""
    import ray

    first = next(iter(configs.values()))
    resources, free = _capacity(config, first, nodes_for(first))
    workers = workers_for(waiting, free)
    running: dict[Any, str] = {}
    reported = time.monotonic()
    with signals.training():
        while waiting or running:
            folder.check()
            stopping = folder.stop_request.exists()
            if not stopping:
                for job in startable(waiting, workers, free, outcomes.finished):
                    waiting.remove(job)
                    free -= workers[job.name]
                    run = _on_workers(configs[job.name], workers[job.name], resources)
                    running[_start(run, folder.fence)] = job.name
                    say(f"{job.name} starts on {workers[job.name]} worker(s)")
            for name in running.values() if stopping else ():
                _ask_to_stop(folder, name)
            if stopping and not running:
                outcomes.stopped += [job.name for job in waiting]
                return
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                name = running.pop(reference)
                free += workers[name]
                _note(name, reference, outcomes)
                waiting = without_orphans(waiting, outcomes)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                say(_progress(folder, running.values(), len(waiting)))


def _capacity(config: SuiteConfig, run: TrainConfig, nodes: Sequence[Node]) -> tuple[Node, int]:
    """(resources of a worker, workers at once) on a cluster of such nodes."""
    needed, room = share_out(run, nodes, title="workers")
    if config.use_gpu and not config.resources_per_worker:
        needed["CPU"] = max(needed["CPU"] - 1, 1.0)  # one of each GPU's share is left to feed it
    return needed, min(room, config.max_parallel_workers or room)


def _on_workers(run: TrainConfig, count: int, resources: dict[str, float]) -> TrainConfig:
    return replace(run, num_workers=count, resources_per_worker=resources)


def _start(run: TrainConfig, fence: Fence | None) -> Any:
    """`fit` in a process of its own, so that whatever happens to one run happens to it alone."""
    import ray

    def one_run() -> tuple[str, Any]:
        try:
            return "finished", asdict(fit(run, patience=2 * EXPIRY_SECONDS, fence=fence))
        except UserError as error:
            return "failed", reason_of(error, run)
        except Interrupted as stop:
            return "stopped", str(stop)

    # No CPU: the workers that it starts take theirs. Retried only when its process is lost, perhaps
    # with its node: hence the patience.
    return (
        ray.remote(one_run).options(num_cpus=0, max_retries=2, name=run.resolved_run_name).remote()
    )


def reason_of(error: UserError, run: TrainConfig) -> str:
    """Return why a run failed, with the remedy that a suite has in place of --fresh."""
    if isinstance(error, DamagedRun):
        return f"{error.problem}; use rm -r {Path(run.storage_path) / run.resolved_run_name}"
    return str(error)


def _note(name: str, reference: Any, outcomes: Outcomes) -> None:
    import ray

    try:
        status, found = ray.get(reference)
    except ray.exceptions.RayError as error:
        status, found = "failed", cause_of(error)
    if status == "finished":
        outcomes.finished[name] = found
        say(f"{name} is finished: score {found['score']:.4f} in {found['seconds']:.0f} s")
    elif status == "failed":
        outcomes.failed[name] = found
        say(f"{name} failed: {found}")
    else:
        outcomes.stopped.append(name)


def without_orphans(waiting: list[Job], outcomes: Outcomes) -> list[Job]:
    """Fail the jobs whose source failed, and stop those whose source was stopped; the others stay."""
    kept = []
    for job in waiting:
        if job.after in outcomes.failed:
            outcomes.failed[job.name] = f"it starts from {job.after}, which failed"
        elif job.after in outcomes.stopped:
            outcomes.stopped.append(job.name)
        else:
            kept.append(job)
    return kept


def _ask_to_stop(folder: SuiteFolder, name: str) -> None:
    request = folder.run(name).stop_request
    if request.parent.is_dir() and not request.exists():
        request.write_text("suite")


def _progress(folder: SuiteFolder, running: Iterable[str], waiting: int) -> str:
    parts = []
    for name in running:
        found = folder.run(name).progress()
        parts.append(
            f"{name} {found['step']}/{found['last_step']}" if found else f"{name} starting"
        )
    return f"running: {', '.join(parts)}; {waiting} waiting"


def job_of(config: SuiteConfig, run: TrainConfig) -> Job:
    """What the schedule has to know of a run.

    Raises:
        UserError: when its training file is damaged.
    """
    rows = split_rows(run, "train") or 1
    steps = -(-rows // run.train_batch_size) * run.num_train_epochs
    source = config.source_of(run.task)
    return Job(
        name=run.resolved_run_name,
        cost=min(steps, run.max_steps or steps) * run.train_batch_size,
        slots=run.micro_batches_per_step,
        after=f"{source}-seed-{run.seed}" if source else None,
    )
