"""Models that share a replica: when they are loaded, under which name they are kept, what is refused."""

import asyncio
import gc
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.replicas_locally import Cache, Loads, Store, settled, unwatched
from support.small_models import LABELS, classifier

from trainyard.errors import UserError
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway.discovery import _handle, _Model
from trainyard.serving.options import SHARED
from trainyard.serving.replica import shared as shared_module
from trainyard.serving.replica import versioned_model
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.shared import SharedReplica
from trainyard.serving.replica.version_records import Build

TASK = "text-classification"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> Cache:
    unwatched(monkeypatch)
    Store(monkeypatch)
    return Cache(monkeypatch)


def shared(**options: Any) -> SharedReplica:
    return SharedReplica({"threads": 1, **options}, Build("args", "run"))


def models(**sources: str) -> dict[str, Any]:
    return {"models": {name: {"source": source} for name, source in sources.items()}}


async def loaded(replica: SharedReplica, name: str) -> Any:
    return (await replica._host(name)).describe()["source"]


async def reconfigured(replica: SharedReplica, user_config: Any) -> None:
    """Take a list, and wait until its new versions serve or are refused."""
    await replica.reconfigure(user_config)
    for kept in list(replica._loaded.values()):
        await settled(kept.model)


def test_they_are_kept_by_the_name_that_the_gateway_asks_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loads(monkeypatch, {"a1": TASK, "a2": TASK})
    sent: list[str] = []

    def options(multiplexed_model_id: str, *, stream: bool) -> None:
        del stream
        sent.append(multiplexed_model_id)

    handle: Any = SimpleNamespace(deployment_name=SHARED, options=options)
    _handle(_Model(handle), "a")

    async def run() -> None:
        replica = shared()
        for version in ("a1", "a2"):  # Serve compares these with what it is sent
            await replica.reconfigure(models(a=version))
            await replica._host("a")
            assert list(cache.kept) == sent

    asyncio.run(run())


def test_to_tell_about_a_model_does_not_load_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = str(classifier(tmp_path / "a"))
    loads = Loads(monkeypatch, {folder: TASK, "org/hub": TASK})

    async def run() -> None:
        replica = shared(max_loaded=1)
        await replica.reconfigure(models(a=folder, hub="org/hub"))
        about = await replica.describe("a")
        assert about["task"] == TASK
        assert about["labels"] == list(LABELS)
        assert (about["status"], about["shared"]) == ("not loaded", True)
        assert about["example"]["inputs"]
        assert "top_k" in json.dumps(about["parameters"])
        assert (await replica.describe("hub"))["source"] == "org/hub"
        with pytest.raises(RequestError, match="no model named"):
            await replica.describe("unknown")
        assert (loads.asked, list(cache.kept)) == ([], [])
        assert await loaded(replica, "a") == folder
        assert "status" not in await replica.describe("a")
        await replica.describe("hub")
        assert (loads.asked, list(cache.kept)) == ([folder], ["a"])

    asyncio.run(run())


def test_a_new_version_takes_over_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[str, str | Exception] = {"a1": TASK, "a2": TASK, "b": TASK, "broken": KeyError("x")}
    loads = Loads(monkeypatch, table)

    async def run() -> None:
        replica = shared(max_loaded=1)
        await reconfigured(replica, models(a="a1", b="b"))
        assert await loaded(replica, "a") == "a1"
        await reconfigured(replica, models(a="broken", b="b"))
        for _ in range(5):
            assert await loaded(replica, "a") == "a1"
        assert "KeyError" in (await replica.describe("a"))["refused"]["error"]
        await reconfigured(replica, models(a="a2", b="b"))
        assert await loaded(replica, "a") == "a2"
        assert loads.asked == ["a1", "broken", "a2"]
        await reconfigured(replica, models(a="broken", b="b"))
        assert await loaded(replica, "b") == "b"  # and a gives way
        assert await loaded(replica, "a") == "a2"  # what was good, when it comes again
        assert loads.open() == ["a2"]

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_not_tried_by_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Loads(monkeypatch, {"broken": UserError("it is broken"), "good": TASK})
    now = [1000.0]
    monkeypatch.setattr(shared_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def run() -> None:
        replica = shared()
        await replica.reconfigure(models(a="broken"))
        for wait in (60, 59, 1):
            answer = await replica.answer("a", b"{}", 1)
            assert (answer.status, answer.headers["retry-after"]) == (503, str(wait))
            now[0] = 1001.0 if wait == 60 else 1059.0
        assert loads.asked == ["broken"]
        now[0] = 1061.0
        await replica.answer("a", b"{}", 1)
        assert loads.asked == ["broken"] * 2
        await replica.reconfigure(models(a="good"))
        assert await loaded(replica, "a") == "good"

    asyncio.run(run())


def test_a_list_with_a_bad_name_is_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    Loads(monkeypatch, {"a": TASK})

    async def run() -> None:
        with pytest.raises(UserError, match="is not a model name"):
            await shared().reconfigure(models(**{"../up": "a"}))
        replica = shared()
        await replica.reconfigure(models(a="a"))
        lists: list[Any] = [models(a="a", **{"../up": "a"}), {"model": {}}, 7]
        for bad in lists:
            for one in (replica, shared()):  # also a replica that starts with it
                await one.reconfigure(bad)
                assert (await one.info()).names == ("a",)
                assert await loaded(one, "a") == "a"
                assert (await one.describe("a"))["refused"]["version"] == bad
        await replica.reconfigure(models(a="a"))
        assert "refused" not in await replica.describe("a")

    asyncio.run(run())


def test_a_caller_who_leaves_does_not_break_off_what_others_wait_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that loads goes on in any case: its model is used, or let go, never forgotten."""
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK})
    load, started, gate = loads._load, threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        started.set()
        assert gate.wait(10)
        return load(*arguments)

    monkeypatch.setattr(Host, "load", slowly)

    async def ask_and_leave(replica: SharedReplica, name: str) -> None:
        gate.clear()
        leaving = asyncio.create_task(replica.answer(name, b"{}", 1))
        await asyncio.to_thread(started.wait, 10)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert name not in cache.kept
        started.clear()
        gate.set()

    async def run() -> None:
        replica = shared(max_loaded=1)
        await replica.reconfigure(models(a="a", b="b"))
        await ask_and_leave(replica, "a")
        assert await loaded(replica, "a") == "a"
        assert (loads.asked, loads.open()) == (["a"], ["a"])
        started.clear()
        await ask_and_leave(replica, "b")  # for which nobody comes again
        assert await loaded(replica, "a") == "a"
        gc.collect()
        assert (loads.asked, loads.open()) == (["a", "b", "a"], ["a"])

    asyncio.run(run())


def test_serve_replaces_a_replica_of_which_a_model_can_never_answer_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Loads(monkeypatch, {"a": TASK})

    async def run() -> None:
        replica = shared()
        await replica.reconfigure(models(a="a"))
        await loaded(replica, "a")
        await replica.check_health()
        loads.hosts[0].fault = "its batcher stopped"
        with pytest.raises(RuntimeError, match="model 'a': its batcher stopped"):
            await replica.check_health()

    asyncio.run(run())


def test_the_health_of_all_models_takes_as_long_as_that_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve waits 30 seconds, and one model may take 20 for its example."""
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK, "c": TASK})

    async def run() -> None:
        replica = shared(max_loaded=3)
        await replica.reconfigure(models(a="a", b="b", c="c"))
        for name in "abc":
            await loaded(replica, name)
        together = asyncio.Barrier(3)  # passed only by all at once

        async def find_fault() -> None:
            await together.wait()

        for host in loads.hosts:
            host.find_fault = find_fault
        await asyncio.wait_for(replica.check_health(), 5)

    asyncio.run(run())


def gated(monkeypatch: pytest.MonkeyPatch, loads: Loads, *names: str) -> threading.Event:
    """Let the loads of some sources wait for the returned event."""
    load, gate = loads._load, threading.Event()

    def slowly(version: Any, *more: Any) -> Any:
        if version.source in names:
            assert gate.wait(10)
        return load(version, *more)

    monkeypatch.setattr(Host, "load", slowly)
    return gate


def test_a_list_that_comes_during_a_load_that_fails_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Loads(monkeypatch, {"bad": UserError("it is broken"), "good": TASK})
    gate = gated(monkeypatch, loads, "bad")

    async def run() -> None:
        replica = shared()
        await replica.reconfigure(models(a="bad"))
        asking = asyncio.create_task(loaded(replica, "a"))
        await asyncio.sleep(0.05)
        await replica.reconfigure(models(a="good"))
        gate.set()
        assert await asking == "good"

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_failure_that_nobody_waited_for_is_not_told_to_the_next_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Loads(monkeypatch, {"a": UserError("it is not there yet")})
    gate = gated(monkeypatch, loads, "a")
    now = [1000.0]
    monkeypatch.setattr(shared_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def run() -> None:
        replica = shared()
        await replica.reconfigure(models(a="a"))
        leaving = asyncio.create_task(replica.answer("a", b"{}", 1))
        await asyncio.sleep(0.05)
        leaving.cancel()
        gate.set()
        while "a" not in replica._failed:
            await asyncio.sleep(0.01)
        now[0] += 120
        loads.table["a"] = TASK
        assert await loaded(replica, "a") == "a"

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_model_that_gave_way_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its next version hangs, and only one model may be loaded at a time."""
    loads = Loads(monkeypatch, {"a": TASK, "hangs": TASK, "b": TASK})
    gate = gated(monkeypatch, loads, "hangs")
    monkeypatch.setattr(versioned_model, "SUPERSEDED_SECONDS", 0.1)
    monkeypatch.setattr(versioned_model, "POLL_SECONDS", 0.01)

    async def run() -> None:
        replica = shared(max_loaded=1)
        await replica.reconfigure(models(a="a", b="b"))
        await loaded(replica, "a")
        await replica.reconfigure(models(a="hangs", b="b"))
        await asyncio.sleep(0.05)
        next(iter(replica._loaded.values())).model.close()  # as the cache does
        assert await asyncio.wait_for(loaded(replica, "b"), 5) == "b"
        gate.set()

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("proven", [True, False])
def test_a_load_that_begins_while_the_replica_ends_is_no_attempt(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, proven: bool
) -> None:
    """Its end would count against the version."""
    store, loads = Store(monkeypatch), Loads(monkeypatch, {"a": TASK})

    async def run() -> None:
        if proven:
            replica = shared()
            await replica.reconfigure(models(a="a"))
            await loaded(replica, "a")
            cache.kept.clear()
        replica = shared()
        await replica.reconfigure(models(a="a"))
        await replica.__del__()
        with pytest.raises(RequestError, match="model 'a' cannot be loaded"):
            await replica._host("a")
        assert loads.asked == (["a"] if proven else [])
        assert not [key for key in store.kept if "attempt" in key]

    asyncio.run(run())
