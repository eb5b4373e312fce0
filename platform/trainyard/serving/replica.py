"""What runs inside a Serve replica of one model, whose versions change in place."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from trainyard.serving.failures import RequestError
from trainyard.serving.gateway import Answer
from trainyard.serving.host import Host
from trainyard.serving.last_good import Build, LastGood
from trainyard.serving.options import ModelOptions
from trainyard.serving.swap import Swap


class ModelReplica:
    """One model. A new `user_config` loads the next version beside the one that serves."""

    def __init__(self, name: str | None, options: Mapping[str, Any], build: Build) -> None:
        from ray import serve

        application = serve.get_replica_context().app_name
        self._name: str = name or application
        parsed = ModelOptions.parse(options, f"args of model '{name}'")
        self._swap = Swap(self._name, parsed, LastGood(application, build, self._name))

    async def reconfigure(self, user_config: Any) -> None:
        """See `Swap.want`: the first version that cannot be loaded fails the deployment."""
        await self._swap.want(user_config)

    async def names(self) -> dict[str, int]:
        """What can be asked here, with how many requests in one call."""
        return {self._name: self._serving().requests_per_call}

    async def answer(self, name: str, requests: Sequence[tuple[bytes, float]]) -> list[Answer]:
        """See `Host.answer_all`."""
        del name
        return await self._serving().answer_all(requests)

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        """See `Host.stream`."""
        del name
        async for event in self._serving().stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """See `Swap.describe`."""
        del name
        self._serving()
        return self._swap.describe()

    async def check_health(self) -> None:
        """Asked by Serve every ten seconds, which replaces a replica that raises here."""
        self._swap.check_health()

    def _serving(self) -> Host:
        if self._swap.host is None:
            raise RequestError("unavailable", f"model '{self._name}' has no user_config yet", 1)
        return self._swap.host
