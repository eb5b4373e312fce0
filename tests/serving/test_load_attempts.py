"""Attempts to load a version for the first time: one replica tries, and a deadly version is refused."""

import asyncio
import json
import pickle
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.replicas_locally import Loads, Store, settled, unwatched, wanted

from trainyard.errors import UserError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica import version_records as module
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.version_records import Build, CutOffError
from trainyard.serving.replica.versioned_model import VersionedModel

TASK = "text-classification"


def settable_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the element of the returned list the time of day, in seconds; pauses are real."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: now[0])
    monkeypatch.setattr(module, "time", clock)
    return now


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    unwatched(monkeypatch)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    return Store(monkeypatch)


def replica(run: str = "1", args: str = "some") -> VersionedModel:
    return VersionedModel("mail", ModelOptions(threads=1), "app", Build(args, run))


def start_process(store: Store, name: str) -> None:
    """Let what follows run in another replica's process."""
    store.replica = name
    store.alive.add(name)


def source(name: str) -> dict[str, str]:
    return {"source": name}


def test_a_version_that_ends_its_process_ends_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One replica tries first, and the others wait; when it is gone, the version is refused."""
    loads = Loads(monkeypatch, {"a": TASK, "deadly": TASK, "b": TASK})

    def named(name: str, run: str = "1") -> VersionedModel:
        store.replica = name
        store.alive.add(name)
        return replica(run)

    async def run() -> None:
        one, two = named("one"), named("two")
        for model in (one, two):
            await model.want(source("a"))
        deadly = Version(source="deadly")
        attempt = one._attempts.first(deadly, lambda: False)
        await attempt.__aenter__()  # and its process will end in there
        waiting = asyncio.create_task(wanted(two, deadly))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        store.alive.remove("one")
        await waiting
        assert loads.asked == ["a", "a"], "nobody else loaded it"
        about = two.describe()
        assert about["source"] == "a"
        assert "ended the process of the replica that loaded it" in about["refused"]["error"]
        instead = named("three")  # Serve starts another, with what is wanted
        await wanted(instead, source("deadly"))
        assert instead.describe()["source"] == "a"
        two._retry_at = 0.0
        await two.check_health()
        await settled(two)
        assert two.describe()["source"] == "a"
        assert "deadly" not in loads.asked
        await wanted(two, source("b"))  # wanted again after another one, it is tried again
        await wanted(two, source("deadly"))
        assert two.describe() == {"source": "deadly"}

    asyncio.run(run())


def test_a_version_that_was_cut_off_is_tried_again_after_a_while_and_not_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else may have ended the process; a version that does so each time stays refused."""
    loads = Loads(monkeypatch, {"a": TASK, "unlucky": TASK})
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])
    monkeypatch.setattr(module, "time", clock)
    unlucky, begun = Version(source="unlucky"), list[Any]()

    def named(name: str) -> VersionedModel:
        store.replica = name
        store.alive.add(name)
        return replica()

    async def cut_off(name: str) -> None:
        begun.append(named(name)._attempts.first(unlucky, lambda: False))
        await begun[-1].__aenter__()  # and its process ends in there
        store.alive.remove(name)

    async def refusal() -> Any:
        model = named("asks")
        await model.want(source("a"))  # that is loaded already, so it forgets nothing
        await wanted(model, source("unlucky"))
        return model.refused and model.refused["error"]

    async def run() -> None:
        await named("first").want(source("a"))
        await cut_off("one")
        assert "1 of at most 3 times" in (error := await refusal() or "")
        assert "it is tried again in 10 min; deploy another version" in error
        now[0] += 599
        assert "it is tried again in 1 min" in (await refusal() or "")
        now[0] += 2
        await cut_off("two")
        assert "2 of at most 3 times" in (error := await refusal() or "")
        assert "it is tried again in 20 min" in error
        now[0] -= 5000  # the clock of another host
        assert "it is tried again in 20 min" in (await refusal() or "")
        now[0] += 5000 + 1201
        records = dict(store.kept)
        assert await refusal() is None
        assert loads.asked[-1] == "unlucky"
        store.kept = {key: value for key, value in records.items() if "last-good" not in key}
        store.kept["trainyardlast-good/app/mail"] = records["trainyardlast-good/app/mail"]
        await cut_off("three")
        now[0] += 1e6
        error = await refusal() or ""
        assert "3 of at most 3 times" in error
        assert "it is not tried again; deploy another version" in error

    asyncio.run(run())


def test_the_time_until_the_next_attempt_begins_when_the_process_has_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt may hang for hours before somebody kills it."""
    loads = Loads(monkeypatch, {"a": TASK, "hangs": TASK})
    now = settable_time(monkeypatch)

    async def run() -> None:
        await replica().want(source("a"))
        attempt = replica()._attempts.first(Version(source="hangs"), lambda: False)
        await attempt.__aenter__()
        now[0] += 3600
        store.alive.remove("one")
        for name, minutes in (("two", 10), ("three", 5)):
            store.replica = name
            store.alive.add(name)
            model = replica()
            await wanted(model, source("hangs"))
            assert model.describe()["source"] == "a"
            assert f"again in {minutes} min" in model.describe()["refused"]["error"]
            now[0] += 300
        now[0] += 1
        model._retry_at = 0.0
        await model.check_health()
        await settled(model)
        assert model.describe() == {"source": "hangs"}
        assert loads.open() == ["a", "a", "hangs"]

    asyncio.run(run())


def test_a_new_replica_does_not_wait_for_the_attempt_of_another_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "slow": TASK})

    async def run() -> None:
        await replica().want(source("a"))
        attempt = replica()._attempts.first(Version(source="slow"), lambda: False)
        await attempt.__aenter__()
        store.replica = "two"
        store.alive.add("two")
        two = replica()
        await asyncio.wait_for(two.want(source("slow")), 5)
        assert two.describe()["source"] == "a"
        assert "slow" not in loads.asked
        await attempt.__aexit__(None, None, None)
        await settled(two)
        assert two.describe() == {"source": "slow"}

    asyncio.run(run())


def test_no_replica_waits_for_ever_for_the_first_load_of_another(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch, {"a": TASK})
    monkeypatch.setattr(module, "FIRST_LOAD_SECONDS", 0.2)

    async def run() -> None:
        attempt = replica()._attempts.first(Version(source="a"), lambda: False)
        await attempt.__aenter__()  # and it hangs in there
        store.replica = "two"
        await asyncio.wait_for(replica().want(source("a")), 5)
        assert loads.asked == ["a"]

    asyncio.run(run())


def test_an_attempt_counts_only_for_what_its_version_did(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the whole node was lost, the application is another, or Serve ended the replica."""
    loads = Loads(monkeypatch, {"a": TASK})

    kept: list[Any] = []

    async def attempted() -> VersionedModel:
        store.kept.clear()
        store.replica, store.alive, store.nodes = "one", {"one", "two"}, {"node"}
        model = replica()
        kept.append(model._attempts.first(Version(source="a"), lambda: False))
        await kept[-1].__aenter__()
        store.replica = "two"
        store.alive = {"two"}
        return model

    async def run() -> None:
        await attempted()
        store.nodes = {"another"}
        await replica().want(source("a"))
        await attempted()
        await replica("2", "other args").want(source("a"))
        (await attempted()).stop_loading()
        await replica().want(source("a"))
        await attempted()
        with pytest.raises(UserError, match="ended the process"):
            await replica().want(source("a"))
        store.replica = "one"
        await kept[-1].__aexit__(None, None, None)
        model = await attempted()
        store.alive.add("one")
        await model.want(source("a"))  # a record of its own that could not be removed
        await attempted()
        store.broken = True  # without a store there is no record, but a model
        await replica().want(source("a"))
        assert loads.open() == ["a"] * 5

    asyncio.run(run())


def test_once_a_version_is_loaded_the_others_load_it_at_the_same_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch, {"a": TASK})
    load, gate, at_once = loads._load, threading.Event(), []

    def slowly(*arguments: Any) -> Any:
        at_once.append(1)
        assert gate.wait(10)
        return load(*arguments)

    monkeypatch.setattr(Host, "load", slowly)

    async def run() -> None:
        models = []
        for name in ("one", "two", "three"):
            store.replica = name
            store.alive.add(name)
            models.append(replica())
        tasks = [asyncio.create_task(model.want(source("a"))) for model in models]
        await asyncio.sleep(0.2)
        assert len(at_once) == 1
        gate.set()
        await asyncio.gather(*tasks)
        assert len(at_once) == 3
        assert not [key for key in store.kept if "attempt" in key]

    asyncio.run(run())


def test_of_two_claims_at_once_one_gets_the_attempt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both list the attempts, and there is none, before either records its own."""
    one = replica()
    store.replica = "two"
    store.alive.add("two")
    two = replica()
    others: list[bool] = []

    def other_claims_next(prefix: str, *, namespace: str) -> list[bytes]:
        found = store._list(prefix, namespace=namespace)
        if not others:
            others.append(False)
            others[0] = two._attempts._claim(prefix, "a")
        return found

    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_list", other_claims_next)
    assert not one._attempts._claim("attempt/a/", "a")
    assert others == [True]
    (record,) = (value for key, value in store.kept.items() if key.endswith("attempt/a/0"))
    assert json.loads(record)["owner"] == two._attempts._owner


def test_an_end_that_serve_causes_is_not_held_against_the_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the replica comes to the turn while it finishes its last requests."""
    Loads(monkeypatch, {"a": TASK, "b": TASK})

    async def run() -> None:
        await replica().want(source("a"))
        attempt = replica()._attempts.first(Version(source="b"), lambda: False)
        await attempt.__aenter__()
        start_process(store, "two")
        two = replica()
        await two.want(source("a"))
        await two.want(source("b"))  # waits for the attempt of the other one
        two.stop_loading()
        await attempt.__aexit__(None, None, None)
        await settled(two)
        assert two.describe()["source"] == "a"
        assert not [key for key in store.kept if "attempt" in key]
        with pytest.raises(UserError, match="Serve ends this replica"):
            two._attempts._claim("attempt/app:mail:x:", "b")

    asyncio.run(run())


def test_an_attempt_that_runs_is_not_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loads(monkeypatch, {"a": TASK, "b": TASK})

    async def run() -> None:
        await replica().want(source("a"))
        attempt = replica()._attempts.first(Version(source="b"), lambda: False)
        await attempt.__aenter__()
        start_process(store, "two")
        replica()._attempts.forget(Version(source="c"))
        assert [key for key in store.kept if "attempt" in key]
        store.alive.remove("one")
        replica()._attempts.forget(Version(source="c"))
        assert not [key for key in store.kept if "attempt" in key]

    asyncio.run(run())


def test_a_replica_removes_no_record_but_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later build removed its record, which counts no more, and then used its number."""
    Loads(monkeypatch, {"a": TASK})
    version = Version(source="a")

    async def run() -> None:
        first = replica("1", "old args")._attempts.first(version, lambda: False)
        await first.__aenter__()
        for name in ("two", "three"):
            start_process(store, name)
            later = replica("2")._attempts.first(version, lambda: False)
            await later.__aenter__()
            if name == "two":
                await later.__aexit__(None, None, None)
        await first.__aexit__(None, None, None)
        (record,) = (value for key, value in store.kept.items() if "attempt" in key)
        assert json.loads(record)["owner"]["actor"] == "three"

    asyncio.run(run())


def test_a_version_is_tried_again_as_soon_as_its_cool_down_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses between the attempts of a replica, which grow, would end minutes later."""
    Loads(monkeypatch, {"a": TASK, "b": TASK})
    now = settable_time(monkeypatch)

    async def run() -> None:
        await replica().want(source("a"))
        attempt = replica()._attempts.first(Version(source="b"), lambda: False)
        await attempt.__aenter__()  # and its process ends in there
        store.alive.remove("one")
        start_process(store, "two")
        two = replica()
        await wanted(two, source("b"))
        assert 29 < two._retry_at - time.monotonic() <= 30
        now[0] += 450
        two._tries, two._retry_at = 4, 0.0
        await two.check_health()
        await settled(two)
        assert 149 < two._retry_at - time.monotonic() <= 150

    asyncio.run(run())
    error = pickle.loads(pickle.dumps(CutOffError("cut off", seconds=5)))  # Ray sends it
    assert (str(error), error.seconds) == ("cut off", 5)


def test_a_recorded_version_that_ends_its_process_now_gives_way_to_the_wanted_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy must be able to replace it: no replica serves it any more."""
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK})

    async def run() -> None:
        await replica().want(source("a"))
        start = replica()._starts.first(Version(source="a"), lambda: True)
        await start.__aenter__()  # and the process ends in there
        store.alive.remove("one")
        start_process(store, "two")
        two = replica()
        await two.want(source("b"))
        assert two.describe() == {"source": "b"}
        assert loads.asked == ["a", "b"]
        loads.table["b"] = UserError("it is broken")
        start_process(store, "three")
        three = replica()
        await wanted(three, source("b"))  # then better that one than none
        assert three.describe()["source"] == "a"
        assert not [key for key in store.kept if "start/" in key], "it can be started again"

    asyncio.run(run())
