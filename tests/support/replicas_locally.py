"""Stand-ins for Ray and models, to run replicas in this process: store, cache, instant hosts."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.serving.options import MODEL
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import ReplicaMetrics
from trainyard.serving.replica.versioned_model import VersionedModel


class Store:
    """Stand-in for Ray's internal key-value store and for Serve's status of one application.

    Attributes:
        kept: Stored values, by namespace and key.
        broken: True to make every access fail.
        status: Status of the application.
        running: Number of its running replicas.
        replica: Name of the calling replica.
        alive: Names of the living replicas.
        nodes: Ids of the living nodes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[str, Any] = {}
        self.broken = False
        self.status, self.running = "DEPLOYING", 0
        self.replica, self.alive, self.nodes = "one", {"one"}, {"node"}
        for name in ("get", "put", "del", "list"):
            stand_in = getattr(self, f"_{name}")
            monkeypatch.setattr(f"ray.experimental.internal_kv._internal_kv_{name}", stand_in)
        monkeypatch.setattr("ray.get_actor", self._get_actor)
        monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": n, "Alive": True} for n in self.nodes])
        node = SimpleNamespace(get_node_id=lambda: "node")
        monkeypatch.setattr("ray.get_runtime_context", lambda: node)
        monkeypatch.setattr("ray.serve.status", self._applications)
        monkeypatch.setattr("ray.serve.get_replica_context", self.context)

    def context(self) -> Any:
        """Build Serve's context of the calling replica."""
        name = self.replica
        return SimpleNamespace(
            app_name="app", replica_id=SimpleNamespace(to_full_id_str=lambda: name)
        )

    def _get_actor(self, name: str, *, namespace: str) -> None:
        assert namespace == "serve"
        if name not in self.alive:
            raise ValueError(f"there is no actor {name}")

    def _applications(self) -> Any:
        deployments = {MODEL: SimpleNamespace(replica_states={"RUNNING": self.running})}
        found = SimpleNamespace(status=self.status, deployments=deployments)
        return SimpleNamespace(applications={"app": found})

    def _get(self, key: str, *, namespace: str) -> Any:
        if self.broken:
            raise RuntimeError("the store is away")
        return self.kept.get(namespace + key)

    def _put(self, key: str, value: str, overwrite: bool = True, *, namespace: str) -> bool:
        """Return True if the key existed, as Ray does."""
        if self.broken:
            raise RuntimeError("the store is away")
        existed = namespace + key in self.kept
        if overwrite or not existed:
            self.kept[namespace + key] = value
        return existed

    def _del(self, key: str | bytes, *, namespace: str) -> None:
        if self.broken:
            raise RuntimeError("the store is away")
        name = key if isinstance(key, str) else key.decode()
        self.kept.pop(namespace + name, None)

    def _list(self, prefix: str, *, namespace: str) -> list[bytes]:
        if self.broken:
            raise RuntimeError("the store is away")
        start = namespace + prefix
        return [key.removeprefix(namespace).encode() for key in self.kept if key.startswith(start)]


class Loads:
    """Stand-in for `Host.load`: `table` maps a source to the task of its model, or to an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, table: dict[str, str | Exception]) -> None:
        self.table = table
        self.asked: list[str] = []
        self.hosts: list[Any] = []
        monkeypatch.setattr(Host, "load", self._load)

    def _load(self, version: Any, *_: Any) -> Any:
        self.asked.append(version.source)
        found = self.table[version.source]
        if isinstance(found, Exception):
            raise found
        host = SimpleNamespace(
            source=version.source, predictor=SimpleNamespace(task=found), closed=False, fault=None
        )

        async def find_fault() -> Any:
            return host.fault

        host.find_fault = find_fault
        host.describe = lambda: {"source": host.source}
        host.close = lambda: setattr(host, "closed", True)
        self.hosts.append(host)
        return host

    def open(self) -> list[str]:
        """List the sources of the hosts that are not closed."""
        return [host.source for host in self.hosts if not host.closed]


class Cache:
    """Stand-in for `serve.multiplexed`; `kept` holds the loaded models by id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: OrderedDict[str, Any] = OrderedDict()
        monkeypatch.setattr("ray.serve.multiplexed", self._multiplexed)

    def _multiplexed(self, *, max_num_models_per_replica: int) -> Callable[..., Any]:
        def wrap(load: Callable[..., Any]) -> Callable[..., Any]:
            async def get(model_id: str) -> Any:
                if model_id not in self.kept:
                    if len(self.kept) == max_num_models_per_replica:
                        self.kept.popitem(last=False)[1].__del__()
                    self.kept[model_id] = await load(model_id)
                self.kept.move_to_end(model_id)
                return self.kept[model_id]

            return get

        return wrap


def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Ray's metrics by ones that record nothing."""
    monkeypatch.setattr(
        "trainyard.serving.replica.versioned_model.RayReplicaMetrics", lambda _: ReplicaMetrics()
    )


async def settled(model: VersionedModel) -> None:
    """Wait until the model loads nothing in the background."""
    while model._task is not None and not model._task.done():
        await asyncio.wait([model._task])


async def wanted(model: VersionedModel, version: Any) -> None:
    """Set the wanted version, and wait until it serves or is refused."""
    await model.want(version)
    await settled(model)
