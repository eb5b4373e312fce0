"""Order and worker counts of runs of different length: pure functions, no cluster."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.fleet import Job, LongestFirst

JOBS = st.lists(
    st.builds(
        Job,
        name=st.uuids().map(str),
        cost=st.floats(1, 1e6),
        micro_batches=st.sampled_from([1, 2, 4, 6, 8]),
    ),
    min_size=1, max_size=12, unique_by=lambda job: job.name,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(JOBS, st.integers(1, 8), st.data())
def test_everything_is_done_within_the_capacity(jobs: list[Job], free: int, data: Any) -> None:
    if len(jobs) > 1:
        last = jobs[-1]
        jobs[-1] = Job(last.name, last.cost, last.micro_batches, after=jobs[0].name)
    schedule = LongestFirst(jobs)
    schedule.share_out(free)
    workers = schedule.workers
    assert all(job.micro_batches % workers[job.name] == 0 for job in jobs)
    assert all(1 <= workers[job.name] <= free for job in jobs)
    running: list[Job] = []
    finished: list[str] = []
    while schedule.waiting or running:
        while (job := schedule.start_next()) is not None:
            assert job.after is None or job.after in finished
            running.append(job)
        assert free - sum(workers[job.name] for job in running) == schedule.free >= 0
        assert running, "nothing runs, although something waits"
        done = running.pop(data.draw(st.integers(0, len(running) - 1)))
        finished.append(done.name)
        assert schedule.end(done.name, finished=True) == []
    assert sorted(finished) == sorted(job.name for job in jobs)


def started(jobs: list[Job], free: int, finished: tuple[str, ...] = ()) -> list[str]:
    schedule = LongestFirst(jobs, finished)
    schedule.share_out(4)
    schedule.free = free
    found = []
    while (job := schedule.start_next()) is not None:
        found.append(job.name)
    return found


def test_longest_first_and_small_ones_on_what_is_left() -> None:
    jobs = [
        Job("small", 1, 4),
        Job("mnli", 100, 4),
        Job("rte", 5, 1, after="mnli"),
        Job("b", 50, 1),
    ]
    schedule = LongestFirst(jobs)
    schedule.share_out(4)
    assert schedule.workers == {"small": 1, "mnli": 2, "rte": 1, "b": 1}
    assert started(jobs, 4) == ["mnli", "b", "small"]
    assert started(jobs, 1) == ["b"]
    assert started([jobs[2]], 1, ("mnli",)) == ["rte"]
    assert started([jobs[2]], 1) == []


def test_what_hangs_on_a_lost_run_never_starts() -> None:
    jobs = [Job("a", 3, 1), Job("b", 2, 1, after="a"), Job("c", 1, 1, after="b"), Job("d", 1, 1)]
    schedule = LongestFirst(jobs)
    schedule.share_out(1)
    assert schedule.start_next() == jobs[0]
    assert schedule.end("a", finished=False) == jobs[1:3]
    assert schedule.waiting == jobs[3:]
    assert schedule.free == 1
