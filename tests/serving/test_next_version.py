"""The next version of a model: loaded beside the one that serves, within its time, in turn."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.replicas_locally import Loads, Store, settled, unwatched, wanted

from trainyard.errors import UserError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica import versioned_model as module
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.turns import NotNeededError
from trainyard.serving.replica.version_records import Build
from trainyard.serving.replica.versioned_model import VersionedModel

TASK = "text-classification"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    unwatched(monkeypatch)
    return Store(monkeypatch)


def replica() -> VersionedModel:
    return VersionedModel("mail", ModelOptions(threads=1), "app", Build("some", "1"))


def source(name: str) -> dict[str, str]:
    return {"source": name}


class Hanging(Loads):
    """Loads of which some hang until `gate` is set, as the files of a storage that hangs do."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, table: dict[str, str | Exception], *hanging: str
    ) -> None:
        super().__init__(monkeypatch, table)
        self.gate, self.hanging = threading.Event(), hanging
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)

    def _load(self, version: Any, *more: Any) -> Any:
        if version.source in self.hanging:
            self.asked.append(f"{version.source} hangs")
            assert self.gate.wait(20)
        return super()._load(version, *more)


def test_the_one_that_serves_does_not_wait_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve sends no request to a replica that is being reconfigured, and tells it no version."""
    loads = Hanging(monkeypatch, {"a": TASK, "slow": TASK}, "slow")

    async def run() -> None:
        model = replica()
        await model.want(source("a"))
        await asyncio.wait_for(model.want(source("slow")), 5)
        about = {"source": "a", "loading": {"version": source("slow")}}
        assert model.describe() == about
        await model.check_health()
        assert model.describe() == about
        loads.gate.set()
        await settled(model)
        assert model.describe() == {"source": "slow"}
        assert loads.asked == ["a", "slow hangs", "slow"]
        assert loads.open() == ["slow"]

    asyncio.run(run())


def test_a_version_that_hangs_is_refused_and_the_next_one_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Hanging(monkeypatch, {"a": TASK, "hangs": TASK, "b": TASK}, "hangs")
    now = [1000.0]

    async def run() -> None:
        model = VersionedModel("mail", ModelOptions(threads=1), "app", Build("some", "1"), 0.1)
        await model.want(source("a"))
        await wanted(model, source("hangs"))
        about = model.describe()
        assert about["source"] == "a"
        assert "model hangs did not load within 0 s" in about["refused"]["error"]
        monkeypatch.setattr(
            module, "time", SimpleNamespace(monotonic=lambda: now[0] + time.monotonic())
        )
        for _ in range(3):  # its thread cannot be stopped, and another one would hang as well
            now[0] += 10_000
            await model.check_health()
            await settled(model)
        assert loads.asked == ["a", "hangs hangs"]
        await wanted(model, source("b"))
        assert model.describe() == {"source": "b"}
        await wanted(model, source("hangs"))  # not before its storage answers
        assert model.describe()["source"] == "b"
        loads.gate.set()
        while model._overdue:
            await asyncio.sleep(0.01)
        assert loads.open() == ["b"], "a late one does not stay in memory"
        await model.check_health()
        await settled(model)
        assert model.describe() == {"source": "hangs"}
        assert loads.open() == ["hangs"]

    asyncio.run(run())


def test_a_load_is_given_up_once_another_version_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the one that serves is not loaded once more."""
    loads = Hanging(monkeypatch, {"a": TASK, "hangs": TASK, "b": TASK}, "hangs")
    monkeypatch.setattr(module, "SUPERSEDED_SECONDS", 0.1)

    async def run() -> None:
        model = replica()
        await model.want(source("a"))
        await model.want(source("hangs"))
        await asyncio.sleep(0.05)
        await wanted(model, source("a"))
        assert model.describe() == {"source": "a"}
        await model.want(source("hangs"))
        await wanted(model, source("b"))
        assert model.describe() == {"source": "b"}
        assert loads.asked == ["a", "hangs hangs", "b"]
        loads.gate.set()
        while model._overdue:
            await asyncio.sleep(0.01)
        assert loads.open() == ["b"]
        assert model._last_good.read()[0]["version"]["source"] == "b"

    asyncio.run(asyncio.wait_for(run(), 10))  # the load that hangs takes longer


def test_a_load_that_waits_for_its_turn_ends_once_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And if it is wanted again at once, it is loaded again, not refused."""
    loads = Loads(monkeypatch, {"a": TASK, "waits": TASK, "late": TASK})
    left, turn = list[str](), threading.Event()

    def load(version: Any, options: Any, metrics: Any, is_needed: Callable[[], bool]) -> Any:
        while version.source != "a" and not turn.is_set():
            if not is_needed():
                left.append(version.source)
                raise NotNeededError
            time.sleep(0.005)
        return loads._load(version, options, metrics)

    async def run() -> None:
        model = replica()
        monkeypatch.setattr(Host, "load", load)
        await model.want(source("a"))
        await model.want(source("waits"))
        await asyncio.sleep(0.05)
        model._wanted = source("a")
        while not left:
            time.sleep(0.005)  # the event loop does not see the end before it is wanted again
        model._wanted = source("waits")
        await asyncio.sleep(0.05)
        turn.set()
        await settled(model)
        assert model.describe() == {"source": "waits"}
        turn.clear()
        model._load_seconds = 0.1
        await wanted(model, source("late"))
        assert "did not load within" in model.describe()["refused"]["error"]
        while model._overdue:
            await asyncio.sleep(0.01)
        assert left == ["waits", "late"]

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_new_replica_first_loads_what_served_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wanted version may hang there, or end its process, while nothing answers."""
    loads = Hanging(monkeypatch, {"a": TASK, "hangs": TASK}, "hangs")

    async def run() -> None:
        await replica().want(source("a"))
        instead = replica()
        await asyncio.wait_for(instead.want(source("hangs")), 5)
        assert instead.describe() == {"source": "a", "loading": {"version": source("hangs")}}
        loads.gate.set()
        await settled(instead)
        assert instead.describe() == {"source": "hangs"}
        another = replica()  # proven now
        await another.want(source("hangs"))
        assert another.describe() == {"source": "hangs"}
        assert loads.asked[-2:] == ["hangs hangs", "hangs"]

    asyncio.run(run())


def test_a_rollback_while_a_version_takes_over_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The takeover waits for the store; meanwhile the version that still serves is wanted again."""
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK})
    writing, gate, put = threading.Event(), threading.Event(), store._put

    def slowly(key: str, *arguments: Any, **more: Any) -> Any:
        if key.startswith("last-good") and loads.asked == ["a", "b"]:
            writing.set()
            assert gate.wait(10)
        return put(key, *arguments, **more)

    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_put", slowly)

    async def run() -> None:
        model = replica()
        await model.want(source("a"))
        await model.want(source("b"))
        await asyncio.to_thread(writing.wait, 10)
        await model.want(source("a"))
        gate.set()
        await settled(model)
        assert model.describe() == {"source": "a"}
        assert loads.open() == ["a"]

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_version_that_is_wanted_again_during_its_load_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Hanging(monkeypatch, {"a": TASK, "b": TASK}, "b")
    monkeypatch.setattr(module, "SUPERSEDED_SECONDS", 0.3)

    async def run() -> None:
        model = replica()
        await model.want(source("a"))
        for name in ("b", "a", "b"):
            await model.want(source(name))
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert model.describe() == {"source": "a", "loading": {"version": source("b")}}
        loads.gate.set()
        await settled(model)
        assert model.describe() == {"source": "b"}
        assert loads.asked == ["a", "b hangs", "b"]

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_former_version_that_hangs_does_not_block_the_wanted_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Hanging(monkeypatch, {"a": TASK, "b": TASK, "c": TASK}, "b")
    loads.gate.set()
    monkeypatch.setattr(module, "GO_BACK_SECONDS", 0.1)

    async def run() -> None:
        for name in "ab":
            await wanted(replica(), source(name))
        loads.gate.clear()
        instead = replica()
        await wanted(instead, source("c"))
        assert instead.describe() == {"source": "c"}
        assert loads.asked[-3:] == ["b hangs", "a", "c"]
        loads.gate.set()

    asyncio.run(asyncio.wait_for(run(), 20))


class Panic(BaseException):
    """What tokenizers raises for some damaged files."""


class Weights:
    """What a load has in memory."""


@pytest.mark.parametrize("fault", ["raises", "user error", "panics", "another task"])
def test_a_load_that_fails_leaves_nothing_in_memory(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Each retry would add a copy, and the collector of cycles may not run for long."""
    load, left = Loads(monkeypatch, {"a": TASK})._load, list[Any]()
    errors: dict[str, BaseException] = {
        "raises": RuntimeError("CUDA out of memory"), "user error": UserError("it fails"),
        "panics": Panic("called Option::unwrap() on a None value"),
    }  # fmt: skip

    def failing(version: Any, *more: Any) -> Any:
        if version.source == "a":
            return load(version, *more)
        weights = Weights()
        left.append(weakref.ref(weights))
        if fault in errors:
            raise errors[fault].with_traceback(None)
        predictor = SimpleNamespace(task="fill-mask", weights=weights)
        return SimpleNamespace(predictor=predictor, close=lambda: None)

    monkeypatch.setattr(Host, "load", failing)
    monkeypatch.setattr(module.log, "exception", lambda *_: None)  # pytest keeps what is logged

    async def run() -> None:
        model = replica()
        await model.want(source("a"))
        await wanted(model, source("x"))
        assert model.refused is not None
        await model.check_health()
        await settled(model)
        assert len(left) == 1, "not before its time"
        model._retry_at = 0.0
        await model.check_health()
        await settled(model)
        assert model.describe()["source"] == "a"

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
        errors.clear()
        assert [ref() for ref in left] == [None, None]
    finally:
        gc.enable()


def test_replicas_of_a_node_that_serve_load_the_next_version_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK})
    load, at_once, most = loads._load, list[int](), list[int]()
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)

    def counted(version: Any, *more: Any) -> Any:
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.1)
        at_once.pop()
        return load(version, *more)

    async def run() -> None:
        models = [replica() for _ in range(3)]
        for model in models:
            model._node_lock = tmp_path / "lock"
            await model.want(source("a"))
        models[0]._last_good.write({"version": Version(source="b").model_dump(), "task": TASK})
        monkeypatch.setattr(Host, "load", counted)
        await asyncio.gather(*(wanted(model, source("b")) for model in models))
        assert [model.describe() for model in models] == [{"source": "b"}] * 3
        assert max(most) == 1

    asyncio.run(asyncio.wait_for(run(), 20))
