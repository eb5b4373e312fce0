"""What replicas need of Ray and of models, in this process: a store, a cache, hosts that load at once."""

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.serving.options import MODEL
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import Watch


class Store:
    """Ray's internal key-value store; `broken`, it does not answer.

    And what Serve knows of the application: its `status`, and how many of its replicas are `running`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[str, Any] = {}
        self.broken = False
        self.status, self.running = "DEPLOYING", 0
        monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", self._get)
        monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_put", self._put)
        monkeypatch.setattr("ray.serve.status", self._applications)
        context = SimpleNamespace(app_name="app")
        monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)

    def _applications(self) -> Any:
        deployments = {MODEL: SimpleNamespace(replica_states={"RUNNING": self.running})}
        found = SimpleNamespace(status=self.status, deployments=deployments)
        return SimpleNamespace(applications={"app": found})

    def _get(self, key: str, *, namespace: str) -> Any:
        if self.broken:
            raise RuntimeError("the store is away")
        return self.kept.get(namespace + key)

    def _put(self, key: str, value: str, *, namespace: str) -> None:
        if self.broken:
            raise RuntimeError("the store is away")
        self.kept[namespace + key] = value


class Loads:
    """`Host.load`, by a table: a source is a model for a task, or raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, table: dict[str, str | Exception]) -> None:
        self.table = table
        self.asked: list[str] = []
        self.hosts: list[Any] = []
        monkeypatch.setattr(Host, "load", self._load)

    def _load(self, version: Any, options: Any, watch: Any) -> Any:
        del options, watch
        self.asked.append(version.source)
        found = self.table[version.source]
        if isinstance(found, Exception):
            raise found
        host = SimpleNamespace(
            source=version.source, predictor=SimpleNamespace(task=found), closed=False, healthy=True
        )
        host.describe = lambda: {"source": host.source}
        host.close = lambda: setattr(host, "closed", True)
        self.hosts.append(host)
        return host

    def open(self) -> list[str]:
        """Sources of the hosts that nobody closed."""
        return [host.source for host in self.hosts if not host.closed]


class Cache:
    """`serve.multiplexed`: what it keeps, by the id that it was asked for."""

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
    """No metrics in Ray."""
    monkeypatch.setattr("trainyard.serving.replica.versioned_model.RayWatch", lambda _: Watch())
