"""Which models are asked by lines, and what a replica does where no line can be."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from support.replicas_locally import Loads, Store, unwatched

from trainyard.serving.replica.deployment import ModelReplica
from trainyard.serving.replica.last_good import Build
from trainyard.serving.transport import Exchange, Line, Place

TASK = "text-classification"


async def place_of(monkeypatch: pytest.MonkeyPatch, *, by_line: bool, scaled: Any = None) -> Any:
    """What a new replica offers as its end of a line."""
    unwatched(monkeypatch)
    Store(monkeypatch)
    config = SimpleNamespace(autoscaling_config=scaled)
    context = SimpleNamespace(app_name="mail", _deployment_config=config)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    loads = Loads(monkeypatch, {"a": TASK})
    replica = ModelReplica(None, {"threads": 1}, Build("args", "run"))
    await replica.reconfigure({"source": "a"})
    (host,) = loads.hosts
    host.by_line = by_line
    offer = await replica.offer()
    assert offer.names == ("mail",)
    if offer.place:
        line = await Line.open(offer.place)
        await asyncio.sleep(0.05)
        assert (await replica.describe("mail"))["lines"] == {"open": 1, "requests": 0}
        line.hang_up()
    await replica.__del__()
    return offer.place


@pytest.mark.parametrize(
    ("by_line", "scaled", "tls", "has_one"),
    [(True, None, "0", True), (False, None, "0", False), (True, {}, "0", False), (True, None, "1", False)],
)  # fmt: skip
def test_who_is_asked_by_a_line(
    by_line: bool, scaled: Any, tls: str, has_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a model whose calls Serve must see: it lets them end, and scales replicas by them."""
    monkeypatch.setenv("RAY_USE_TLS", tls)
    place = asyncio.run(place_of(monkeypatch, by_line=by_line, scaled=scaled))
    assert (place is not None) == has_one


def test_a_replica_serves_where_it_cannot_listen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_: Exchange, host: str) -> Place:
        raise OSError(f"cannot assign {host}")

    monkeypatch.setattr(Exchange, "open", refuse)
    assert asyncio.run(place_of(monkeypatch, by_line=True)) is None
    assert "no line can be opened here (cannot assign 127.0.0.1)" in caplog.text
