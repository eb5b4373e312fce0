"""The batcher when things go wrong in the middle: memory, time, its own thread."""

import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from trainyard.serving.errors import RequestError
from trainyard.serving.replica.batcher import Batcher, BatchRecord


class Activations:
    """What a forward pass allocates."""


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("a bad row")])
def test_the_memory_of_a_failed_pass_is_free_before_its_halves_run(error: Exception) -> None:
    alive: list[weakref.ref[Activations]] = []
    beside: list[int] = []

    def forward(rows: list[int], busy: int) -> list[int]:
        del busy
        beside.append(sum(one() is not None for one in alive))
        activations = Activations()
        alive.append(weakref.ref(activations))
        if len(rows) > 1:
            try:
                raise KeyError("whatever")
            except KeyError:
                raise type(error)(*error.args) from None
        return rows

    async def run() -> None:
        batcher = Batcher(forward, lambda _: 1)
        assert (await batcher.submit([1, 2, 3, 4])).results == [1, 2, 3, 4]
        batcher.close()

    asyncio.run(run())
    assert beside == [0] * 7


def test_a_late_request_is_told_while_the_model_is_busy_and_leaves_no_tokens() -> None:
    gate, started = threading.Event(), threading.Event()
    now = [100.0]

    def forward(rows: list[int], busy: int) -> list[int]:
        del busy
        started.set()
        assert gate.wait(10)
        return rows

    async def late(batcher: Batcher[int, int], rows: list[int], seconds: float) -> RequestError:
        """What a request is told, by a clock that no stall of this machine moves."""
        came = now[0]
        asyncio.get_running_loop().call_later(seconds / 2, now.__setitem__, 0, came + seconds)
        with pytest.raises(RequestError) as told:
            await batcher.submit(rows, came + seconds)
        return told.value

    async def run() -> None:
        batcher = Batcher(forward, lambda row: row, clock=lambda: now[0])
        running = asyncio.create_task(batcher.submit([1]))
        await asyncio.to_thread(started.wait, 10)
        told = await late(batcher, [7, 8], 0.1)
        assert str(told).startswith("it waited 0.1 s, longer than this request allows")
        assert (told.kind, told.status) == ("late", 503)
        assert batcher.waiting_rows == batcher.expected_wait() == 0
        gate.set()
        await running
        gate.clear()
        assert str(await late(batcher, [2], 1.0)).startswith("it took 1.0 s, longer than this")
        gate.set()
        assert (await batcher.submit([3])).results == [3]
        batcher.close()

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_is_gone() -> None:
    """A defect: fewer results than rows. Those in flight are told, like those that wait."""
    gate, started = threading.Event(), threading.Event()

    def forward(rows: Sequence[int], busy: int) -> list[int]:
        del busy
        started.set()
        assert gate.wait(10)
        return list(rows)[1:]

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(forward, lambda _: 1)
        requests: list[asyncio.Task[Any]] = [asyncio.create_task(batcher.submit([1, 2]))]
        await asyncio.to_thread(started.wait, 10)
        requests.append(asyncio.create_task(batcher.submit([3])))
        while not batcher.waiting_rows:
            await asyncio.sleep(0)
        gate.set()
        told = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 5)
        assert [str(error) for error in told] == ["the batcher stopped; see its replica's log"] * 2
        assert batcher.broken
        with pytest.raises(RequestError, match="being replaced"):
            await batcher.submit([4])

    asyncio.run(run())


def test_a_metric_that_fails_stops_no_request(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: BatchRecord) -> None:
        raise ValueError("no such metric")

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(lambda rows, _: rows, lambda _: 1, on_batch=broken)
        for row in range(3):  # of a stopped worker, the second would be told so
            assert (await batcher.submit([row])).results == [row]
        assert not batcher.broken
        batcher.close()

    asyncio.run(run())
    assert "a batch of 1 rows could not be reported" in caplog.text
    assert "no such metric" in caplog.text
