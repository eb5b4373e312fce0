"""Order and worker counts of runs of different length, without Ray.

The longest run that fits on the free workers starts first: Graham's longest-processing-time rule
(1969). For independent runs of one worker each, the rule takes at most 4/3 of the shortest possible
time. A run that is a large part of all the work gets several workers, since the number of workers
does not change results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One run to schedule."""

    name: str
    cost: float
    """Training rows, summed over all epochs."""
    micro_batches: int
    """Micro-batches per step, a multiple of the number of workers."""
    after: str | None = None
    """Name of the run that must finish first; None if the run can start at any time."""


class LongestFirst:
    """Scheduler that starts the longest waiting job that fits on the free workers.

    Args:
        jobs: Runs to schedule.
        finished: Names of runs that have already finished.

    Attributes:
        waiting: Jobs that have not started.
        workers: Number of workers of each job, by name, after `share_out`.
        free: Number of free workers.
    """

    def __init__(self, jobs: Sequence[Job], finished: Iterable[str] = ()) -> None:
        self.waiting = list(jobs)
        self.workers: dict[str, int] = {}
        self.free = 0
        self._running: set[str] = set()
        self._finished = set(finished)

    def share_out(self, capacity: int) -> None:
        """Assign workers to each waiting job, in proportion to its cost.

        A job gets the largest divisor of its micro-batches that its share of `capacity` allows, at
        least 1.
        """
        self.free = capacity
        total = sum(job.cost for job in self.waiting) or 1.0
        for job in self.waiting:
            share = max(1, int(capacity * job.cost / total))
            divisors = (n for n in range(1, job.micro_batches + 1) if job.micro_batches % n == 0)
            self.workers[job.name] = max(n for n in divisors if n <= share)

    def start_next(self) -> Job | None:
        """Start the highest-ranked ready job that fits, and reserve its workers.

        The rank of a job is its cost plus the largest cost of a waiting job that comes directly
        after it.

        Returns:
            The started job; None if no job can start.
        """
        cost = {job.name: job.cost for job in self.waiting}
        chain = dict(cost)
        for job in self.waiting:
            if job.after in cost:
                chain[job.after] = max(chain[job.after], cost[job.after] + job.cost)
        for job in sorted(self.waiting, key=lambda job: (-chain[job.name], job.name)):
            ready = job.after is None or job.after in self._finished
            if ready and self.workers[job.name] <= self.free:
                self.waiting.remove(job)
                self._running.add(job.name)
                self.free -= self.workers[job.name]
                return job
        return None

    def end(self, name: str, *, finished: bool) -> list[Job]:
        """Free the workers of an ended job.

        Args:
            name: Name of the job.
            finished: True if the job succeeded, so that jobs after it may start.

        Returns:
            Waiting jobs that can no longer start, directly or indirectly after the job.
        """
        if name in self._running:
            self._running.remove(name)
            self.free += self.workers[name]
        if finished:
            self._finished.add(name)
            return []
        lost = [job for job in self.waiting if job.after == name]
        self.waiting = [job for job in self.waiting if job not in lost]
        return lost + [later for job in lost for later in self.end(job.name, finished=False)]
