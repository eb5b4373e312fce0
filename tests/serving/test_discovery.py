"""What the gateway finds in Serve: models, connections to their replicas, what stays known."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.serve_stand_ins import (
    Replicas,
    applications,
    echo,
    models,
    offering,
    one_running,
    until,
)

from trainyard.serving.gateway import discovery as module
from trainyard.serving.gateway.discovery import ServeModels
from trainyard.serving.options import MODEL, SHARED
from trainyard.serving.transport import ReplicaInfo


def test_connections_are_opened_kept_spread_over_and_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_running(monkeypatch)
    said: list[Any] = []
    handle = offering(lambda: said, answer=SimpleNamespace(remote=echo))
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)

    async def run() -> None:
        replicas, found = Replicas(), ServeModels()
        places = await replicas.open(2)
        said[:] = [ReplicaInfo(("mail",), place) for place in places]
        await found.refresh()
        lines = dict(found._models["mail"].connections)
        assert set(lines) == set(places)
        replicas.gate.clear()
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(6)]
        await until(lambda: len(replicas.asked) == 6)
        assert sorted(replicas.asked) == [0, 0, 0, 1, 1, 1]
        await found.refresh()
        assert dict(found._models["mail"].connections) == lines  # not opened anew
        said[1] = ValueError("it is being lost")
        await found.refresh()
        assert list(found._models["mail"].connections) == places[:1]
        replicas.gate.set()  # what was asked of the other one is answered still
        assert {answer.body for answer in await asyncio.gather(*asking)} == {b"by connection: x"}

    asyncio.run(run())


def by_grpc(answer: Any) -> Any:
    """What `handle.options(_by_reference=False)` gives: Serve's gRPC transport."""

    def options(*, _by_reference: bool) -> Any:
        assert not _by_reference
        return SimpleNamespace(answer=SimpleNamespace(remote=answer))

    return options


@pytest.mark.parametrize("reason", ["refused", "none offered"])
def test_a_replica_without_a_connection_gets_its_share_through_serve_and_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    one_running(monkeypatch, replicas=3)

    async def run() -> None:
        replicas, found = Replicas(), ServeModels()
        addresses = await replicas.open(3)
        infos = [ReplicaInfo(("mail",), address) for address in addresses]
        if reason == "refused":
            replicas.servers[2]._server.close()
        else:
            infos[2] = ReplicaInfo(("mail",))
        gate, by_serve = asyncio.Event(), []

        async def answer(_: str, body: bytes, __: float) -> Any:
            by_serve.append(body)
            await gate.wait()
            return await echo(_, body, __)

        handle = offering(lambda: infos, options=by_grpc(answer))
        monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)
        await found.refresh()
        replicas.gate.clear()
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(9)]
        await until(lambda: len(replicas.asked) + len(by_serve) == 9)
        assert sorted(replicas.asked) == [0, 0, 0, 1, 1, 1]
        assert len(by_serve) == 3
        gate.set()
        replicas.gate.set()
        await asyncio.gather(*asking)

    asyncio.run(run())
    assert ("its requests go through Serve, slower" in caplog.text) == (reason == "refused")


def test_replicas_are_asked_again_only_when_something_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_running(monkeypatch, replicas=2)
    asked = 0

    async def run() -> None:
        replicas, found = Replicas(), ServeModels()
        infos = [ReplicaInfo(("mail",), address) for address in await replicas.open(2)]

        def offers() -> Any:
            nonlocal asked
            asked += 1
            return infos

        handle = offering(offers)
        monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)
        for _ in range(5):
            await found.refresh()
        assert asked == 1
        found._connections[infos[0].address]._transport.abort()  # type: ignore[index]
        await until(lambda: not all(c.usable for c in found._connections.values()))
        await found.refresh()
        assert asked == 2
        one_running(monkeypatch, replicas=1)  # two infos of one running: one is going
        for _ in range(3):
            await found.refresh()
        assert asked == 5
        one_running(monkeypatch, replicas=2)
        now = [time.monotonic()]
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        for skipped in (0, 0, 31, 0):  # and now and then in any case
            now[0] += skipped
            await found.refresh()
        assert asked == 7

    asyncio.run(run())


def test_descriptions_asked_for_at_once_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch)
    calls: list[str] = []
    gate = asyncio.Event()

    async def describe(name: str) -> dict[str, Any]:
        calls.append(name)
        await gate.wait()
        return {"task": "any"}

    async def run() -> None:
        found = models(echo)
        found._models["mail"].handle.describe = SimpleNamespace(remote=describe)
        asking = [asyncio.ensure_future(found.describe("mail")) for _ in range(50)]
        await until(lambda: len(calls) == 1)
        asking[0].cancel()  # who leaves takes nobody along
        gate.set()
        assert [about["task"] for about in await asyncio.gather(*asking[1:])] == ["any"] * 49
        await found.describe("mail")
        assert len(calls) == 2

    asyncio.run(run())


def test_replicas_that_do_not_answer_stay_known(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch)
    said: list[Any] = []

    def next_one() -> Any:
        if isinstance(offers := said.pop(), Exception):
            raise offers
        return offers

    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: offering(next_one))

    async def run() -> None:
        replicas, found = Replicas(), ServeModels()
        (place,) = await replicas.open(1)
        said.append([ReplicaInfo(("mail",), place)])
        await found.refresh()
        for offers in ([ValueError("lost")], [], TimeoutError("broadcast")):
            said.append(offers)
            await found.refresh()
            assert (await found.ask("mail", b"x", 9)).body == b"by connection: x"

    asyncio.run(run())


def test_a_new_gateway_asks_any_replica_when_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch)

    def hangs() -> Any:
        raise TimeoutError("broadcast")

    async def info() -> ReplicaInfo:
        return ReplicaInfo(("mail",), ("127.0.0.1", 1, b""))

    handle = offering(hangs, info=SimpleNamespace(remote=info), answer=SimpleNamespace(remote=echo))
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)
    found = ServeModels()
    asyncio.run(found.refresh())
    assert asyncio.run(found.ask("mail", b"x", 9)).body == b"by Ray: x"


def test_two_applications_with_one_name_open_no_line_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = SimpleNamespace(replica_states={"RUNNING": 1})
    both = SimpleNamespace(deployments={MODEL: running}, status="RUNNING", last_deployed_time_s=1)
    applications(monkeypatch, {"one": both, "two": both})

    async def run() -> None:
        replicas, found = Replicas(), ServeModels()
        places = dict(zip(("one", "two"), await replicas.open(2), strict=True))
        monkeypatch.setattr(
            "ray.serve.get_deployment_handle",
            lambda _, app: offering(lambda: [ReplicaInfo(("mail",), places[app])], app_name=app),
        )
        await found.refresh()
        lines = dict(found._connections)
        assert len(lines) == 2
        await found.refresh()
        assert found._connections == lines
        applications(monkeypatch, {"two": both})
        await found.refresh()
        assert set(found._connections) == {places["two"]}
        assert not lines[places["one"]].usable

    asyncio.run(run())


def test_an_application_may_change_its_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch, SHARED)
    shared = offering(lambda: [ReplicaInfo(("mail", "other"))], SHARED)
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: shared)
    found = models(echo)
    asyncio.run(found.refresh())
    assert found.names() == ["mail", "other"]
    assert found._models["mail"].handle is shared


def test_a_model_stays_known_while_its_application_is_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve lists no deployments then, though the replicas serve on."""
    building = SimpleNamespace(deployments={}, status="DEPLOYING", last_deployed_time_s=1)
    there = {"mail": building, "new": building}
    applications(monkeypatch, there)
    found = models(echo)
    asyncio.run(found.refresh())
    assert (found.names(), found.waiting_for()) == (["mail"], ["new"])
    assert asyncio.run(found.ask("mail", b"x", 9)).status == 200
    del there["mail"]
    asyncio.run(found.refresh())
    assert found.names() == []


def test_a_model_at_rest_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autoscaling may leave no replica; the next request wakes one."""
    deployment = SimpleNamespace(replica_states={}, status="HEALTHY")
    mail = SimpleNamespace(
        deployments={MODEL: deployment}, status="RUNNING", last_deployed_time_s=1
    )
    applications(monkeypatch, {"mail": mail})
    found, unknown = models(echo), ServeModels()
    for one, state, waiting in (
        (found, "HEALTHY", []),
        (found, "UNHEALTHY", ["mail"]),
        (unknown, "HEALTHY", ["mail"]),
    ):
        deployment.status = state
        asyncio.run(one.refresh())
        assert one.waiting_for() == waiting
    assert found.names() == ["mail"]
