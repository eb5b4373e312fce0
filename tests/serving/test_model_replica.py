"""Which models are asked by lines, and what a replica does where no line can be."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from support.replicas_locally import Loads, Store, unwatched

from trainyard.serving.replica.deployment import ModelReplica
from trainyard.serving.replica.version_records import Build
from trainyard.serving.transport import Address, Connection, ConnectionServer

TASK = "text-classification"


async def place_of(monkeypatch: pytest.MonkeyPatch, *, connects: bool, scaled: Any = None) -> Any:
    """What a new replica offers as its end of a line."""
    unwatched(monkeypatch)
    context = Store(monkeypatch).context()
    context.app_name, context._deployment_config = (
        "mail",
        SimpleNamespace(autoscaling_config=scaled),
    )
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    monkeypatch.setattr(
        "trainyard.serving.replica.deployment.get_node_ip_address", lambda: "127.0.0.1"
    )
    loads = Loads(monkeypatch, {"a": TASK})
    replica = ModelReplica(None, {"threads": 1}, Build("args", "run"))
    await replica.reconfigure({"source": "a"})
    (host,) = loads.hosts
    host.uses_connections = connects
    info = await replica.info()
    assert info.names == ("mail",)
    if info.address:
        connection = await Connection.open(info.address)
        await asyncio.sleep(0.05)
        found = await replica.describe("mail")
        assert found["connections"] == found["lines"] == {"open": 1, "requests": 0}
        connection.close()
    await replica.__del__()
    return info.address


@pytest.mark.parametrize(
    ("connects", "scaled", "tls", "has_one"),
    [(True, None, "0", True), (False, None, "0", False), (True, {}, "0", False), (True, None, "1", False)],
)  # fmt: skip
def test_who_is_asked_by_a_line(
    connects: bool, scaled: Any, tls: str, has_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a model whose calls Serve must see: it lets them end, and scales replicas by them."""
    monkeypatch.setenv("RAY_USE_TLS", tls)
    place = asyncio.run(place_of(monkeypatch, connects=connects, scaled=scaled))
    assert (place is not None) == has_one


def test_a_replica_serves_where_it_cannot_listen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_: ConnectionServer, host: str) -> Address:
        raise OSError(f"cannot assign {host}")

    monkeypatch.setattr(ConnectionServer, "open", refuse)
    assert asyncio.run(place_of(monkeypatch, connects=True)) is None
    assert "no connection can be opened here (cannot assign 127.0.0.1)" in caplog.text
