"""Which run starts when, on how many workers: pure functions, no Ray.

Longest first, and whatever fits on the workers that are left: Graham's longest-processing-time rule
(1969), at most 4/3 of the shortest possible time for runs of one worker each. A run that is a large
part of all the work gets more than one worker, since worker counts change no result.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One run to do."""

    name: str
    cost: float
    """Rows to train on, over all epochs."""
    slots: int
    """Slots per step: the number of workers must divide it."""
    after: str | None = None
    """Run that must be finished first."""


def workers_for(jobs: Sequence[Job], available: int) -> dict[str, int]:
    """Workers of each job: its share of all the work, rounded down to what divides its slots."""
    total = sum(job.cost for job in jobs) or 1.0
    found = {}
    for job in jobs:
        share = max(1, int(available * job.cost / total))
        found[job.name] = max(
            n for n in range(1, job.slots + 1) if job.slots % n == 0 and n <= share
        )
    return found


def startable(
    waiting: Sequence[Job],
    workers: Mapping[str, int],
    free: int,
    finished: Collection[str],
) -> list[Job]:
    """The waiting jobs that start now on `free` workers: longest first, each that still fits.

    What other jobs wait for counts as long as the longest chain that hangs on it.
    """
    chain = {job.name: job.cost for job in waiting}
    own = dict(chain)
    for job in waiting:
        if job.after is not None and job.after in own:
            chain[job.after] = max(chain[job.after], own[job.after] + job.cost)
    chosen = []
    for job in sorted(waiting, key=lambda job: (-chain[job.name], job.name)):
        ready = job.after is None or job.after in finished
        if ready and workers[job.name] <= free:
            chosen.append(job)
            free -= workers[job.name]
    return chosen
