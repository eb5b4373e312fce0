"""A host under hard work: its loop stays free, and nothing is computed for a caller who is gone."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.serving_locally import load
from support.small_models import classifier, encoder_decoder

from trainyard.errors import UserError
from trainyard.inference.request_tokens import Item, Prepared, Row
from trainyard.serving.errors import RequestError
from trainyard.serving.options import ModelOptions
from trainyard.serving.replica import host as host_module
from trainyard.serving.replica.host import SMALL_ANSWER, Host
from trainyard.serving.replica.metrics import ReplicaMetrics

LONG = {"max_new_tokens": 4000, "min_new_tokens": 4000}


class Slow:
    """A predictor whose model waits at a gate and whose answers take long to make."""

    task = "slow"
    example: Any = None
    labels: tuple[str, ...] = ()
    max_tokens = 64
    device = SimpleNamespace(type="cpu")
    model = SimpleNamespace(can_generate=lambda: True)

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
    return Host(predictor, ModelOptions(), {}, ReplicaMetrics())


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


def test_an_engine_learns_its_share_of_the_cores() -> None:
    """By the number of torch's threads: a pass alone has all, one beside another has half."""

    class Counting(Slow):
        model = SimpleNamespace(can_generate=lambda: False)
        shares: list[int]

        def forward(self, rows: Sequence[Row]) -> list[Any]:
            self.shares.append(torch.get_num_threads())
            return super().forward(rows)

    async def run() -> None:
        predictor: Any = Counting()
        predictor.shares = []
        host = Host(predictor, ModelOptions(threads=2), {"engine": "openvino"}, ReplicaMetrics())
        predictor.gate.clear()
        asked = []
        for number in (1, 2):
            asked.append(asyncio.ensure_future(host.answer(b'{"inputs": ""}', 20)))
            while len(predictor.shares) < number:
                await asyncio.sleep(0.001)
        predictor.gate.set()
        await asyncio.gather(*asked)
        host.close()
        assert predictor.shares == [2, 1]

    asyncio.run(run())


def test_a_stream_behind_a_busy_model_ends_at_its_deadline() -> None:
    async def run() -> None:
        predictor = Slow()
        host = host_of(predictor)
        predictor.gate.clear()
        busy = asyncio.ensure_future(host.answer(b'{"inputs": ""}', 20))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        told = iter([began])  # when it came; later on it is as late as can be
        host._batcher._clock = lambda: next(told, began + 0.3)
        with pytest.raises(
            RequestError, match=r"it waited 0\.3 s, longer than this request allows"
        ):
            async for _ in host.stream(b'{"inputs": "", "stream": true}', 0.3):
                pass
        assert time.monotonic() - began < 3
        assert predictor.cancelled()
        assert not busy.done()
        predictor.gate.set()
        await busy
        host.close()

    asyncio.run(run())


def test_a_short_text_waits_for_no_megabyte() -> None:
    class Reader(Slow):
        def preprocess(self, inputs: Any, parameters: Any) -> Prepared:
            assert len(inputs) < 100 or self.gate.wait(10)
            return super().preprocess(inputs, parameters)

    async def run() -> None:
        predictor: Any = Reader()
        host = host_of(predictor)
        predictor.gate.clear()
        large = json.dumps({"inputs": "x" * host_module.SMALL_BODY}).encode()
        waiting = asyncio.ensure_future(host.answer(large, 20))
        await asyncio.sleep(0.1)
        predictor.forward = lambda rows: [np.zeros(1) for _ in rows]
        async with asyncio.timeout(5):
            assert (await host.answer(b'{"inputs": ""}', 20)).status == 200
        assert not waiting.done()
        predictor.gate.set()
        assert (await waiting).status == 200
        host.close()

    asyncio.run(run())


@pytest.mark.parametrize("generates", [True, False])
def test_only_what_takes_no_time_is_asked_by_a_line(generates: bool) -> None:
    predictor = Slow()
    predictor.model = SimpleNamespace(can_generate=lambda: generates)
    host = host_of(predictor)
    assert host.uses_connections is not generates
    host.close()


def test_a_model_that_fails_on_its_example_leaves_no_threads_behind() -> None:
    """They would hold it in memory, and a version that is refused is tried again and again."""
    before = set(threading.enumerate())
    predictor: Any = Slow()
    host = Host(predictor, ModelOptions(), {"source": "x"}, ReplicaMetrics())
    started = set(threading.enumerate()) - before
    assert started
    with pytest.raises(UserError, match="the model of x fails on the example of its task"):
        host.warm_up()
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


def test_what_a_stream_fails_on_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    log = SimpleNamespace(error=lambda _, exc_info: told.append(exc_info))
    monkeypatch.setattr(host_module, "log", log)
    predictor: Any = Slow()
    failure = ValueError("device-side assert triggered")

    def forward(_: Sequence[Row]) -> list[Any]:
        raise failure

    predictor.forward = forward

    async def run() -> None:
        host = host_of(predictor)
        with pytest.raises(RequestError, match="its replica's log has the reason"):
            async for _ in host.stream(b'{"inputs": "", "stream": true}', 20):
                pass
        host.close()

    asyncio.run(run())
    assert told == [failure]


def test_a_trained_model_is_served_with_the_length_of_its_training(tmp_path: Path) -> None:
    folder = classifier(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trained_max_length": 16}))
    host = load(folder)
    text: dict[str, Any] = {"inputs": "bab " * 40}
    cut = asyncio.run(host.answer(json.dumps(text).encode(), 60))
    assert (cut.status, cut.headers["x-truncated-tokens"]) == (200, "26")
    text["parameters"] = {"truncation": False}
    refused = asyncio.run(host.answer(json.dumps(text).encode(), 60))
    assert (refused.status, b"has 42 tokens and only 16 fit" in refused.body) == (422, True)
    assert host.describe()["limits"]["max_tokens"] == 16
    host.close()


def test_a_text_for_a_model_without_a_limit_is_one_pass_at_most(tmp_path: Path) -> None:
    """T5 reads texts of any length, with memory that grows by the square of it."""
    folder = encoder_decoder(tmp_path, "T5")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    host = load(folder, batch_tokens=50)
    text: dict[str, Any] = {"inputs": "a" * 60, "parameters": {"max_new_tokens": 2}}
    refused = asyncio.run(host.answer(json.dumps(text).encode(), 60))
    assert (refused.status, b"has 60 tokens and only 50 fit" in refused.body) == (422, True)
    text["parameters"] = {"max_new_tokens": 2, "truncation": True}
    cut = asyncio.run(host.answer(json.dumps(text).encode(), 60))
    assert (cut.status, cut.headers["x-truncated-tokens"]) == (200, "10")
    assert host.describe()["limits"]["max_tokens"] == 50
    host.close()


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
            assert b"longer than this request allows" in (await long).body

    asyncio.run(run())


def test_health_asks_the_example_after_a_failure() -> None:
    """A bad input fails alone; on a broken device the example fails, too."""
    predictor: Any = Slow()
    predictor.example = {"inputs": "example"}
    broken, asked = [False], []
    preprocess = predictor.preprocess

    def counted(inputs: Any, parameters: Any) -> Prepared:
        asked.append(inputs)
        return preprocess(inputs, parameters)  # type: ignore[no-any-return]

    def forward(rows: Sequence[Row]) -> list[Any]:
        if broken[0] or asked[-1] == "bad":
            raise RuntimeError("CUDA error: device-side assert triggered")
        return [np.zeros(1) for _ in rows]

    predictor.preprocess, predictor.forward = counted, forward

    async def run() -> None:
        host = host_of(predictor)
        assert await host.find_fault() is None
        assert asked == []  # nothing failed: nothing is computed
        assert (await host.answer(b'{"inputs": "bad"}', 20)).status == 500
        assert await host.find_fault() is None
        assert asked == ["bad", "example"]
        assert await host.find_fault() is None
        assert asked == ["bad", "example"]
        broken[0] = True
        assert (await host.answer(b'{"inputs": "good"}', 20)).status == 500
        for _ in range(3):  # Serve wants to hear it three times
            assert await host.find_fault() == "it fails on the example of its task"
        host.close()

    asyncio.run(run())


def test_a_pass_that_does_not_end_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device may hang instead of raising; a pass whose caller still waits is only slow."""
    monkeypatch.setattr(host_module, "STUCK_SECONDS", 0.2)
    predictor: Any = Slow(1)
    predictor.gate.clear()

    async def run() -> None:
        host = host_of(predictor)
        waiting = asyncio.create_task(host.answer(b'{"inputs": "x"}', 30))
        await asyncio.sleep(0.4)
        assert await host.find_fault() is None
        waiting.cancel()
        await asyncio.sleep(0.1)
        assert await host.find_fault() is None
        await asyncio.sleep(0.2)
        assert await host.find_fault() == "a forward pass does not end"
        predictor.gate.set()
        while await host.find_fault():
            await asyncio.sleep(0.01)
        assert (await host.answer(b'{"inputs": "x"}', 30)).status == 200
        host.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_pass_may_take_as_long_as_the_model_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model on one core needs minutes for a batch: a client that left must not end it."""
    monkeypatch.setattr(host_module, "STUCK_SECONDS", 0.0)
    predictor: Any = Slow(1)
    predictor.example = {"inputs": "x"}

    def forward_all(rows: Sequence[Row]) -> list[Any]:
        time.sleep(0.3)
        return predictor.forward(rows)  # type: ignore[no-any-return]

    predictor.forward_all = forward_all
    host = host_of(predictor)
    host.warm_up()  # of 3 tokens
    assert 400 < host._stuck_seconds < 4000  # 4 * 0.1 s * 4096 tokens
    host.close()


@pytest.mark.parametrize(("owned", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_replica_computes_on_a_gpu_that_is_its_own(
    owned: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray does not hide a GPU from a replica that reserved none."""
    chosen = []

    def choose(*arguments: Any) -> Any:
        chosen.append(arguments[-1])
        raise UserError("the device is chosen")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(host_module, "owns_gpu", lambda: owned)
    monkeypatch.setattr(host_module, "locate", lambda *_: (tmp_path, {}))
    monkeypatch.setattr(host_module, "task_of", lambda _: "text-classification")
    monkeypatch.setattr(host_module, "choose", choose)
    with pytest.raises(UserError, match="the device is chosen"):
        load(tmp_path)
    assert chosen == [device]
