"""Deployment of one model; new versions replace the old version without a restart."""

import logging
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray import serve
from ray.util import get_node_ip_address

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import ModelOptions
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.version_records import Build
from trainyard.serving.replica.versioned_model import VersionedModel
from trainyard.serving.transport import Address, ConnectionServer, ReplicaInfo

log = logging.getLogger("ray.serve.trainyard")


class ModelReplica:
    """Replica of one model. A new `user_config` loads the next version while the former serves."""

    def __init__(self, name: str | None, options: Mapping[str, Any], build: Build) -> None:
        application = serve.get_replica_context().app_name
        self._name: str = name or application
        parsed = ModelOptions.parse(options, f"args of model '{name}'")
        self._model = VersionedModel(self._name, parsed, application, build)
        self._server = ConnectionServer(lambda body, seconds: self._host().answer(body, seconds))
        self._address: Address | None = None

    async def reconfigure(self, user_config: Any) -> None:
        """Load a version, see `VersionedModel.want`; the first call also listens for connections.

        It does not listen if Ray uses TLS, which connections lack.

        Raises:
            UserError: The version cannot be loaded, and there is no other; the deployment then
                fails.
        """
        await self._model.want(user_config)
        if (
            self._address is None and os.environ.get("RAY_USE_TLS") != "1"
        ):  # connections have no TLS
            try:
                self._address = await self._server.open(get_node_ip_address())
            except OSError as error:
                log.warning("no connection can be opened here (%s): requests use Serve", error)

    async def info(self) -> ReplicaInfo:
        """Return the model's name, and an address if the gateway should open a connection.

        A model that is scaled by load has no address: Serve must see its requests.

        Raises:
            RequestError: No version is loaded (`unavailable`).
        """
        scaled = serve.get_replica_context()._deployment_config.autoscaling_config is not None
        connects = self._host().uses_connections and not scaled
        return ReplicaInfo((self._name,), self._address if connects else None)

    async def answer(self, name: str, body: bytes, seconds: float) -> Answer:
        del name
        return await self._host().answer(body, seconds)

    async def stream(
        self, name: str, body: bytes, seconds: float
    ) -> AsyncGenerator[Answer | bytes]:
        del name
        async for event in self._host().stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """Describe the model, see `VersionedModel.describe`.

        `connections` has the number of open connections and of requests received over them. For one
        release, it also has its former key, `lines`.

        Raises:
            RequestError: No version is loaded (`unavailable`).
        """
        del name
        self._host()
        counts = {"open": len(self._server.connections), "requests": self._server.requests}
        return self._model.describe() | {"connections": counts, "lines": counts}

    async def check_health(self) -> None:
        """Check the model; Serve replaces a replica that raises here.

        Serve calls this every ten seconds.

        Raises:
            RuntimeError: The model cannot answer.
        """
        await self._model.check_health()

    async def __del__(self) -> None:
        """Finish the requests received over connections, which Serve does not count.

        Serve awaits this before it ends the process.
        """
        self._model.stop_loading()
        await self._server.close()

    def _host(self) -> Host:
        if self._model.host is None:
            raise RequestError("unavailable", f"model '{self._name}' has no user_config yet", 1)
        return self._model.host
