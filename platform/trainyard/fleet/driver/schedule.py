"""Order and worker counts of runs of different length: pure functions, no Ray.

Longest first, and whatever fits on the workers that are left: Graham's longest-processing-time rule
(1969), at most 4/3 of the shortest possible time for runs of one worker each. A run that is a large
part of all the work gets more than one worker, since worker counts change no result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One run to do."""

    name: str
    cost: float
    """Rows to train on, over all epochs."""
    micro_batches: int
    """Micro-batches per step: the number of workers must divide it."""
    after: str | None = None
    """Run that must be finished first."""


class LongestFirst:
    """Choose the longest waiting job that fits on the free workers.

    Args:
        jobs: Runs to do.
        finished: Names of runs that were finished before.
    """

    def __init__(self, jobs: Sequence[Job], finished: Iterable[str] = ()) -> None:
        self.waiting = list(jobs)
        self.workers: dict[str, int] = {}
        self.free = 0
        self._running: set[str] = set()
        self._finished = set(finished)

    def share_out(self, capacity: int) -> None:
        """Assign each job its share of `capacity` workers: a divisor of its micro-batches."""
        self.free = capacity
        total = sum(job.cost for job in self.waiting) or 1.0
        for job in self.waiting:
            share = max(1, int(capacity * job.cost / total))
            divisors = (n for n in range(1, job.micro_batches + 1) if job.micro_batches % n == 0)
            self.workers[job.name] = max(n for n in divisors if n <= share)

    def start_next(self) -> Job | None:
        """Take the workers of the next job; None while no job can start.

        The rank of a job is its longest chain of dependent jobs.
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
        """Free the workers of a job that has ended; returns the waiting jobs that now never start."""
        if name in self._running:
            self._running.remove(name)
            self.free += self.workers[name]
        if finished:
            self._finished.add(name)
            return []
        lost = [job for job in self.waiting if job.after == name]
        self.waiting = [job for job in self.waiting if job not in lost]
        return lost + [later for job in lost for later in self.end(job.name, finished=False)]
