"""The batcher's promises, by property and by provocation; no Ray, no torch."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.serving.errors import RequestError
from trainyard.serving.replica.batcher import Batcher, BatchLimits


class Model:
    """Answers each row with its double; `gate` holds it, `break_on` fails it."""

    def __init__(self, break_on: Callable[[Sequence[int]], Exception | None] | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.break_on = break_on

    def __call__(self, rows: list[int], passes: int = 1) -> list[int]:
        del passes
        self.batches.append(list(rows))
        self.started.release()
        assert self.gate.wait(10)
        error = self.break_on(rows) if self.break_on else None
        if error:
            raise error
        return [2 * row for row in rows]


def make(model: Model, **limits: int) -> Batcher[int, int]:
    return Batcher(model, lambda row: row, limits=BatchLimits(**limits))


async def hold(model: Model, batcher: Batcher[int, int], row: int = 1) -> "asyncio.Task[Any]":
    """Keep the model busy with `row` until its gate opens."""
    model.gate.clear()
    task = asyncio.create_task(batcher.submit([row]))
    await asyncio.to_thread(model.started.acquire)
    return task


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 60), max_size=9), max_size=25),
    st.integers(1, 200),
    st.integers(1, 16),
)
def test_everybody_gets_their_own_answers_in_order(
    requests: list[list[int]], tokens: int, rows: int
) -> None:
    model = Model()

    async def run() -> list[Any]:
        batcher = make(model, batch_tokens=tokens, batch_rows=rows)
        done = await asyncio.gather(*(batcher.submit(request) for request in requests))
        batcher.close()
        return done

    done = asyncio.run(run())
    assert [d.results for d in done] == [[2 * row for row in request] for request in requests]
    assert sum(len(batch) for batch in model.batches) == sum(map(len, requests))
    assert all(len(b) <= rows and (len(b) == 1 or len(b) * max(b) <= tokens) for b in model.batches)


def test_a_free_model_starts_at_once_and_a_busy_one_takes_all_that_waits() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model)
        first = await hold(model, batcher)
        others = [asyncio.create_task(batcher.submit([7])) for _ in range(20)]
        while batcher.waiting_rows < 20:
            await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)
        assert model.batches == [[1], [7] * 20]
        batcher.close()

    asyncio.run(run())


def test_the_event_loop_runs_while_the_model_does() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model)
        task = await hold(model, batcher)
        turns = 0
        while turns < 1000:
            await asyncio.sleep(0)
            turns += 1
        assert not task.done()
        model.gate.set()
        await task
        batcher.close()

    asyncio.run(run())


def test_a_bad_row_fails_alone() -> None:
    async def run() -> None:
        model = Model(lambda rows: ValueError("no") if 13 in rows else None)
        batcher = make(model)
        first = await hold(model, batcher)
        tasks = [asyncio.create_task(batcher.submit([row])) for row in (10, 11, 12, 13, 14, 15)]
        while batcher.waiting_rows < 6:
            await asyncio.sleep(0)
        model.gate.set()
        done = await asyncio.gather(first, *tasks, return_exceptions=True)
        failed = [d for d in done if isinstance(d, Exception)]
        assert [(f.kind, f.status) for f in failed if isinstance(f, RequestError)] == [
            ("failed", 500)
        ]
        assert isinstance(failed[0].__cause__, ValueError)
        assert [d.results for d in done if not isinstance(d, BaseException)] == [
            [2], [20], [22], [24], [28], [30],
        ]  # fmt: skip
        batcher.close()

    asyncio.run(run())


def test_out_of_memory_splits_and_later_batches_are_smaller() -> None:
    async def run() -> None:
        model = Model(
            lambda rows: RuntimeError("CUDA out of memory") if len(rows) * max(rows) > 80 else None
        )
        batcher = make(model, batch_tokens=320)
        for _ in range(3):
            done = await asyncio.gather(*(batcher.submit([10]) for _ in range(32)))
            assert [d.results for d in done] == [[20]] * 32
        tried = len([b for b in model.batches if len(b) > 8])
        assert 1 <= tried <= 4, "the budget that failed is not tried again and again"
        with pytest.raises(RequestError, match="100 tokens does not fit into memory; shorten it"):
            await batcher.submit([100])
        batcher.close()

    asyncio.run(run())


def test_groups_do_not_mix_and_do_not_starve_each_other() -> None:
    async def run() -> None:
        model = Model()
        batcher = Batcher(model, lambda _: 5, lambda row: "odd" if row % 2 else "even")
        first = await hold(model, batcher)
        tasks = [asyncio.create_task(batcher.submit([row])) for row in range(2, 12)]
        while batcher.waiting_rows < 10:
            await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *tasks)
        assert model.batches == [[1], [2, 4, 6, 8, 10], [3, 5, 7, 9, 11]]
        batcher.close()

    asyncio.run(run())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model, waiting_tokens=30)
        first = await hold(model, batcher)
        waiting = [asyncio.create_task(batcher.submit([10])) for _ in range(3)]
        await asyncio.sleep(0)
        sentence = (
            "30 tokens are queued and this request has 10, the maximum is 30; try again later"
        )
        with pytest.raises(RequestError, match=sentence) as refused:
            await batcher.submit([10])
        assert refused.value.status == 429
        assert int(refused.value.headers()["retry-after"]) >= 1
        model.gate.set()
        await asyncio.gather(first, *waiting)
        batcher.close()

    asyncio.run(run())


def test_what_waited_too_long_is_shed_and_the_model_not_bothered() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model)
        first = await hold(model, batcher)
        late = asyncio.create_task(batcher.submit([5], time.monotonic() + 0.05))
        await asyncio.sleep(0.1)
        model.gate.set()
        with pytest.raises(RequestError, match="longer than this request allows") as shed:
            await late
        assert shed.value.status == 503
        await first
        assert model.batches == [[1]]
        batcher.close()

    asyncio.run(run())


def test_a_request_that_would_come_too_late_is_refused_before_it_waits() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model, batch_rows=1)
        for _ in range(3):
            task = await hold(model, batcher, 10)
            await asyncio.sleep(0.05)
            model.gate.set()
            await task
        first = await hold(model, batcher, 10)
        waiting = [asyncio.create_task(batcher.submit([10])) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="the answer would take about") as refused:
            await batcher.submit([10], time.monotonic() + 0.2)
        assert refused.value.status == 429
        model.gate.set()
        await asyncio.gather(first, *waiting)
        batcher.close()

    asyncio.run(run())


def test_rows_of_a_caller_who_left_are_dropped() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model)
        first = await hold(model, batcher)
        leaving = asyncio.create_task(batcher.submit([5, 6]))
        staying = asyncio.create_task(batcher.submit([7]))
        while batcher.waiting_rows < 3:
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, staying)
        assert model.batches == [[1], [7]]
        batcher.close()

    asyncio.run(run())


def test_a_closed_batcher_finishes_what_waits_and_takes_no_more() -> None:
    async def run() -> None:
        model = Model()
        batcher = make(model)
        first = await hold(model, batcher)
        waiting = asyncio.create_task(batcher.submit([3]))
        await asyncio.sleep(0)
        batcher.close()
        model.gate.set()
        assert [d.results for d in await asyncio.gather(first, waiting)] == [[2], [6]]
        with pytest.raises(RequestError, match="being replaced"):
            await batcher.submit([3])

    asyncio.run(run())


def test_workers_share_what_waits_and_know_how_many_they_are() -> None:
    async def run() -> None:
        model = Model()
        batcher = Batcher(model, lambda _: 5, workers=2)
        first, second = [await hold(model, batcher, row) for row in (1, 2)]
        assert model.batches == [[1], [2]], "the second did not wait for the first"
        tasks = [asyncio.create_task(batcher.submit([row])) for row in range(10, 30)]
        while batcher.waiting_rows < 20:
            await asyncio.sleep(0)
        model.gate.set()
        done = await asyncio.gather(first, second, *tasks)
        assert [d.results for d in done[2:]] == [[2 * row] for row in range(10, 30)]
        batcher.close()

    asyncio.run(run())


@pytest.mark.parametrize(("rows", "batches", "busy"), [(6, [6], {1}), (20, [10, 10], {2})])
def test_many_rows_are_divided_among_free_workers_and_few_are_not(
    rows: int, batches: list[int], busy: set[int]
) -> None:
    async def run() -> None:
        model, told = Model(), set()
        model.gate.clear()

        def forward(batch: list[int], passes: int) -> list[int]:
            told.add(passes)
            return model(batch)

        batcher = Batcher(forward, lambda _: 5, workers=2)
        task = asyncio.create_task(batcher.submit([7] * rows))
        for _ in batches:
            await asyncio.to_thread(model.started.acquire, timeout=5)
        assert [len(batch) for batch in model.batches] == batches
        assert told == busy
        model.gate.set()
        await task
        batcher.close()

    asyncio.run(run())


def test_a_pass_is_stuck_when_nobody_waits_for_it_and_it_still_runs() -> None:
    """A pass of two requests is not stuck while one caller is left."""
    gates, started = {1: threading.Event(), 2: threading.Event()}, threading.Semaphore(0)

    def forward(rows: list[int], passes: int) -> list[int]:
        del passes
        started.release()
        assert gates[len(rows)].wait(20)
        return rows

    async def run() -> None:
        batcher = Batcher(forward, lambda row: row)
        first = asyncio.create_task(batcher.submit([7]))
        await asyncio.to_thread(started.acquire)
        assert batcher.stuck_seconds() == 0
        pair = [asyncio.create_task(batcher.submit([7])) for _ in range(2)]
        while batcher.waiting_rows < 2:
            await asyncio.sleep(0)
        gates[1].set()
        await first
        await asyncio.to_thread(started.acquire)
        for caller, stuck in zip(pair, (False, True), strict=True):
            caller.cancel()
            await asyncio.sleep(0.05)
            assert (batcher.stuck_seconds() > 0) == stuck
        gates[2].set()
        while batcher.stuck_seconds():
            await asyncio.sleep(0.01)
        batcher.close()

    asyncio.run(asyncio.wait_for(run(), 20))
