"""What the gateway finds in Serve: models, lines to their replicas, and what stays known meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from support.serve_stand_ins import (
    Exchanges,
    applications,
    echo,
    models,
    offering,
    one_running,
    until,
)

from trainyard.serving.gateway.discovery import ServeModels
from trainyard.serving.options import MODEL, SHARED
from trainyard.serving.transport import Offer


def test_lines_are_opened_kept_spread_over_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch)
    said: list[Any] = []
    handle = offering(lambda: said, answer=SimpleNamespace(remote=echo))
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)

    async def run() -> None:
        replicas, found = Exchanges(), ServeModels()
        places = await replicas.open(2)
        said[:] = [Offer(("mail",), place) for place in places]
        await found.refresh()
        lines = dict(found._known["mail"].lines)
        assert set(lines) == set(places)
        replicas.gate.clear()
        asking = [asyncio.ensure_future(found.ask("mail", b"x", 9)) for _ in range(6)]
        await until(lambda: len(replicas.asked) == 6)
        assert sorted(replicas.asked) == [0, 0, 0, 1, 1, 1]
        await found.refresh()
        assert dict(found._known["mail"].lines) == lines  # not opened anew
        said[1] = ValueError("it is being lost")
        await found.refresh()
        assert list(found._known["mail"].lines) == places[:1]
        replicas.gate.set()  # what was asked of the other one is answered still
        assert {answer.body for answer in await asyncio.gather(*asking)} == {b"by line: x"}
        said[1] = Offer(("mail",))  # one that has no line would get no work
        await found.refresh()
        assert not found._known["mail"].lines
        assert (await found.ask("mail", b"x", 9)).body == b"by Ray: x"

    asyncio.run(run())


def test_where_no_line_can_be_opened_requests_go_through_ray(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one_running(monkeypatch)

    async def run() -> None:
        replicas, found = Exchanges(), ServeModels()
        (place, other) = await replicas.open(2)
        replicas.exchanges[1]._server.close()  # nobody listens there
        offers = [Offer(("mail",), place), Offer(("mail",), other)]
        handle = offering(lambda: offers, answer=SimpleNamespace(remote=echo))
        monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)
        await found.refresh()
        assert (await found.ask("mail", b"x", 9)).body == b"by Ray: x"
        assert replicas.asked == []

    asyncio.run(run())
    assert "a replica has no line" in caplog.text
    assert "requests go through Ray, slower" in caplog.text


def test_replicas_that_do_not_answer_stay_known(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch)
    said: list[Any] = []

    def next_one() -> Any:
        if isinstance(offers := said.pop(), Exception):
            raise offers
        return offers

    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: offering(next_one))

    async def run() -> None:
        replicas, found = Exchanges(), ServeModels()
        (place,) = await replicas.open(1)
        said.append([Offer(("mail",), place)])
        await found.refresh()
        for offers in ([ValueError("lost")], [], TimeoutError("broadcast")):
            said.append(offers)
            await found.refresh()
            assert (await found.ask("mail", b"x", 9)).body == b"by line: x"

    asyncio.run(run())


def test_a_new_gateway_asks_any_replica_when_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch)

    def hangs() -> Any:
        raise TimeoutError("broadcast")

    async def offer() -> Offer:
        return Offer(("mail",), ("127.0.0.1", 1, b""))

    handle = offering(
        hangs, offer=SimpleNamespace(remote=offer), answer=SimpleNamespace(remote=echo)
    )
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: handle)
    found = ServeModels()
    asyncio.run(found.refresh())
    assert asyncio.run(found.ask("mail", b"x", 9)).body == b"by Ray: x"


def test_two_applications_with_one_name_open_no_line_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = SimpleNamespace(replica_states={"RUNNING": 1})
    both = SimpleNamespace(deployments={MODEL: running}, status="RUNNING")
    applications(monkeypatch, {"one": both, "two": both})

    async def run() -> None:
        replicas, found = Exchanges(), ServeModels()
        places = dict(zip(("one", "two"), await replicas.open(2), strict=True))
        monkeypatch.setattr(
            "ray.serve.get_deployment_handle",
            lambda _, app: offering(lambda: [Offer(("mail",), places[app])], app_name=app),
        )
        await found.refresh()
        lines = dict(found._lines)
        assert len(lines) == 2
        await found.refresh()
        assert found._lines == lines
        applications(monkeypatch, {"two": both})
        await found.refresh()
        assert set(found._lines) == {places["two"]}
        assert not lines[places["one"]].open_to_all

    asyncio.run(run())


def test_an_application_may_change_its_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    one_running(monkeypatch, SHARED)
    shared = offering(lambda: [Offer(("mail", "other"))], SHARED)
    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *_: shared)
    found = models(echo)
    asyncio.run(found.refresh())
    assert found.names() == ["mail", "other"]
    assert found._known["mail"].handle is shared


def test_a_model_stays_known_while_its_application_is_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve lists no deployments then, though the replicas serve on."""
    building = SimpleNamespace(deployments={}, status="DEPLOYING")
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
    mail = SimpleNamespace(deployments={MODEL: deployment}, status="RUNNING")
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
