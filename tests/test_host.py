"""A host under hard work: its loop stays free, and nothing is computed for a caller who is gone."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving_locally import load
from small_models import encoder_decoder

from trainyard.predictors.rows import Item, Prepared, Row
from trainyard.serving.failures import RequestError
from trainyard.serving.host import SMALL_ANSWER, Host
from trainyard.serving.options import ModelOptions
from trainyard.serving.watch import Watch

LONG = {"max_new_tokens": 4000, "min_new_tokens": 4000}


class Slow:
    """A predictor whose model waits at a gate and whose answers take long to make."""

    task = "slow"
    example: Any = None
    labels: tuple[str, ...] = ()
    model = SimpleNamespace(device=SimpleNamespace(type="cpu"), can_generate=lambda: True)

    def __init__(self, numbers: int = 10**6, seconds: float = 0.0) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.numbers, self.seconds = numbers, seconds
        self.made_in: list[str] = []

    def preprocess(self, inputs: Any, parameters: Any) -> Prepared:
        del inputs, parameters
        return Prepared([Item([Row({}, 3)])], False, None)

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        assert self.gate.wait(10)
        return [np.zeros(self.numbers) for _ in rows]

    def postprocess(self, prepared: Prepared, results: Sequence[Any]) -> Any:
        del prepared, results
        self.made_in.append(threading.current_thread().name)
        time.sleep(self.seconds)
        return "done"

    def stop_when(self, prepared: Prepared, cancelled: Callable[[], bool]) -> None:
        del prepared
        self.cancelled = cancelled

    def stream(self, prepared: Prepared, emit: Callable[[Any], None]) -> None:
        """Nothing to tell before the end."""


def host_of(predictor: Any) -> Host:
    return Host(predictor, ModelOptions(), {}, Watch())


async def largest_gap(until: "asyncio.Future[Any]") -> float:
    """Seconds in which the event loop did nothing else."""
    gap, last = 0.0, time.monotonic()
    while not until.done():
        await asyncio.sleep(0.005)
        gap, last = max(gap, time.monotonic() - last), time.monotonic()
    return gap


def test_a_large_answer_is_made_beside_the_event_loop() -> None:
    async def run() -> None:
        host = host_of(Slow(seconds=0.6))
        task = asyncio.ensure_future(host.answer(b'{"inputs": ""}', 20))
        assert await largest_gap(task) < 0.3
        assert (await task).body == b'"done"'
        host.close()

    asyncio.run(run())


@pytest.mark.parametrize(("numbers", "here"), [(SMALL_ANSWER, True), (SMALL_ANSWER + 1, False)])
def test_a_small_answer_waits_for_no_thread(numbers: int, here: bool) -> None:
    predictor = Slow(numbers)
    host = host_of(predictor)
    assert asyncio.run(host.answer(b'{"inputs": ""}', 20)).status == 200
    assert (predictor.made_in == [threading.current_thread().name]) is here
    host.close()


def test_a_stream_behind_a_busy_model_ends_at_its_deadline() -> None:
    async def run() -> None:
        predictor = Slow()
        host = host_of(predictor)
        predictor.gate.clear()
        busy = asyncio.ensure_future(host.answer(b'{"inputs": ""}', 20))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(RequestError, match=r"it waited 0\.3 s, longer than this request may"):
            async for _ in host.stream(b'{"inputs": ""}', 0.3):
                pass
        assert time.monotonic() - began < 3
        assert predictor.cancelled()
        assert not busy.done()
        predictor.gate.set()
        await busy
        host.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = load(encoder_decoder(tmp_path_factory.mktemp("t5"), "T5"))
    yield host
    host.close()


def body(**parameters: Any) -> bytes:
    return json.dumps({"inputs": "bab", "parameters": parameters}).encode()


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("leaves", [True, False])
def test_nothing_is_generated_for_a_caller_who_left_or_is_late(
    writer: Host, monkeypatch: pytest.MonkeyPatch, beams: int, leaves: bool
) -> None:
    started = threading.Event()
    generated: list[int] = []
    forward = writer.predictor.forward

    def told(rows: Sequence[Row]) -> list[Any]:
        started.set()
        results = forward(rows)
        generated.extend(len(result[0].tokens) for result in results)
        return results

    monkeypatch.setattr(writer.predictor, "forward", told)

    async def run() -> None:
        long = asyncio.ensure_future(
            writer.answer(body(num_beams=beams, **LONG), 60 if leaves else 0.5)
        )
        await asyncio.to_thread(started.wait, 10)
        if leaves:
            await asyncio.sleep(0.1)
            long.cancel()
        short = await writer.answer(body(max_new_tokens=3), 60)
        assert short.status == 200
        assert len(generated) == 2
        assert 0 < generated[0] < LONG["max_new_tokens"]
        if not leaves:
            assert (await long).status == 503
            assert b"longer than this request may" in (await long).body

    asyncio.run(run())
