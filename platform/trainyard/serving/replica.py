"""What runs inside a Serve replica: one model whose versions change in place, or several in turn."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from trainyard.errors import UserError
from trainyard.serving.failures import RequestError
from trainyard.serving.gateway import Answer
from trainyard.serving.host import Host
from trainyard.serving.options import ModelOptions, SharedOptions, SharedVersions, Version
from trainyard.serving.watch import RayWatch

log = logging.getLogger("ray.serve.trainyard")


class ModelReplica:
    """One model. A new `user_config` loads the next version beside the one that serves."""

    def __init__(self, name: str | None, options: Mapping[str, Any]) -> None:
        from ray import serve

        self._name: str = name or serve.get_replica_context().app_name
        self._options = ModelOptions.parse(options, f"args of model '{name}'")
        self._watch = RayWatch(self._name)
        self._host: Host | None = None
        self._refused: dict[str, Any] | None = None
        self._loading = asyncio.Lock()  # of two versions in a row the second stays

    async def reconfigure(self, user_config: Any) -> None:
        """Load a version in a thread, warm it, then let it take over between two requests.

        While nothing serves yet, a version that cannot be loaded fails the deployment. Later it is
        refused: Serve would stop the replica for it, and with it the version that works.
        """
        async with self._loading:
            try:
                version = Version.parse(user_config, f"user_config of model '{self._name}'")
                host = await asyncio.to_thread(Host.load, version, self._options, self._watch)
            except UserError as error:
                if self._host is None:
                    raise
                self._refused = {"version": user_config, "error": str(error)}
                log.error("model '%s' keeps its version: %s", self._name, error)
                return
            before, self._host, self._refused = self._host, host, None
            if before is not None:
                before.close()

    async def names(self) -> dict[str, int]:
        """What can be asked here, with how many requests in one call."""
        return {self._name: self._serving().requests_per_call}

    async def answer(self, name: str, requests: Sequence[tuple[bytes, float]]) -> list[Answer]:
        """See `Host.answer_all`."""
        del name
        return await self._serving().answer_all(requests)

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncIterator[bytes]:
        """See `Host.stream`."""
        del name
        async for event in self._serving().stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """See `Host.describe`; with the version that was refused last, if it was."""
        del name
        refused = {"refused": self._refused} if self._refused else {}
        return {**self._serving().describe(), **refused}

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises here."""
        if self._host is not None and not self._host.healthy:
            raise RuntimeError("the batcher's thread is gone")

    def _serving(self) -> Host:
        if self._host is None:
            raise RequestError("unavailable", f"model '{self._name}' has no user_config yet", 1)
        return self._host


class SharedReplica:
    """Rarely used models, loaded when they are asked for; the least recently used gives way.

    Serve's multiplexing keeps them, and sends requests to a replica that has their model.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from ray import serve

        self._options = SharedOptions.parse(options, "args of shared models")
        self._versions: dict[str, Version] = {}

        async def load(model_id: str) -> "_Slot":
            return await self._load(model_id)

        self._slot = serve.multiplexed(max_num_models_per_replica=self._options.max_loaded)(load)

    async def reconfigure(self, user_config: Any) -> None:
        """Take another list of models; what is loaded and unchanged stays."""
        self._versions = SharedVersions.parse(user_config, "user_config of shared models").models

    async def names(self) -> dict[str, int]:
        """What can be asked here, one request a call: Serve routes calls by their model."""
        return dict.fromkeys(self._versions, 1)

    async def answer(self, name: str, requests: Sequence[tuple[bytes, float]]) -> list[Answer]:
        """See `Host.answer_all`; loads the model first when need be."""
        try:
            host = await self._host(name)
        except RequestError as error:
            return [Answer.to(error)] * len(requests)
        return await host.answer_all(requests)

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncIterator[bytes]:
        """See `Host.stream`."""
        async for event in (await self._host(name)).stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """See `Host.describe`; loads the model, as only then its labels are known."""
        return {**(await self._host(name)).describe(), "shared": True}

    async def _host(self, name: str) -> Host:
        version = self._versions.get(name)
        if version is None:
            raise RequestError("not_found", "there is no such model here")
        # The version is part of what is kept: a new one is another model to the cache.
        slot: _Slot = await self._slot(json.dumps([name, version.source, version.revision]))
        return slot.host

    async def _load(self, model_id: str) -> "_Slot":
        name, source, revision = json.loads(model_id)
        version = Version(source=source, revision=revision)
        try:
            return _Slot(await asyncio.to_thread(Host.load, version, self._options, RayWatch(name)))
        except UserError as error:
            log.error("model '%s' cannot be loaded: %s", name, error)
            raise RequestError("unavailable", f"model '{name}' cannot be loaded", 60) from None


class _Slot:
    """A loaded model in Serve's cache, which says that it drops one by calling `__del__`."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __del__(self) -> None:
        self.host.close()
