"""Rows that enter the batcher from the thread that makes them; no Ray, no torch."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving.test_batcher import Model, make

from trainyard.serving.errors import RequestError


def test_rows_made_in_a_thread_are_entered_there_or_fail_there() -> None:
    async def run() -> None:
        batcher = make(Model())
        made_in = set()

        def rows(given: list[int]) -> list[int]:
            made_in.add(threading.current_thread().name.split("_")[0])
            if given == [0]:
                raise RequestError("invalid", "no rows can be made of that")
            return given

        with ThreadPoolExecutor(1, thread_name_prefix="made") as pool:
            assert (await batcher.submit_from(pool, lambda: rows([1, 2]))).results == [2, 4]
            assert (await batcher.submit_from(pool, lambda: rows([]))).results == []
            with pytest.raises(RequestError, match="no rows can be made of that"):
                await batcher.submit_from(pool, lambda: rows([0]))
        assert made_in == {"made"}
        batcher.close()
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(RequestError, match="the model is being replaced"),
        ):
            await batcher.submit_from(pool, lambda: [1])

    asyncio.run(run())


@pytest.mark.parametrize("begun", [False, True])
def test_a_caller_who_leaves_before_rows_are_made_gets_none_computed(begun: bool) -> None:
    """Where making them has not `begun` they are not even made."""

    async def run() -> None:
        model = Model()
        batcher = make(model)
        gate, making = threading.Event(), threading.Event()

        def rows() -> list[int]:
            making.set()
            assert gate.wait(10)
            return [5]

        with ThreadPoolExecutor(1) as pool:
            if not begun:
                pool.submit(gate.wait, 10)
            leaving = asyncio.create_task(batcher.submit_from(pool, rows))
            while not leaving.done() and begun and not making.is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.set()
        assert making.is_set() is begun
        assert (await batcher.submit([7])).results == [14]
        assert model.batches == [[7]]
        assert batcher.waiting_rows == 0
        batcher.close()

    asyncio.run(run())
