"""What runs inside a Serve replica of one model, whose versions change in place."""

import logging
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import ModelOptions
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.last_good import Build, LastGood
from trainyard.serving.replica.versioned_model import Swap
from trainyard.serving.transport import Exchange, Offer, Place

log = logging.getLogger("ray.serve.trainyard")


class ModelReplica:
    """One model. A new `user_config` loads the next version beside the one that serves."""

    def __init__(self, name: str | None, options: Mapping[str, Any], build: Build) -> None:
        from ray import serve

        application = serve.get_replica_context().app_name
        self._name: str = name or application
        parsed = ModelOptions.parse(options, f"args of model '{name}'")
        self._swap = Swap(self._name, parsed, LastGood(application, build, self._name))
        self._exchange = Exchange(lambda body, seconds: self._serving().answer(body, seconds))
        self._place: Place | None = None

    async def reconfigure(self, user_config: Any) -> None:
        """See `Swap.want`: the first version that cannot be loaded fails the deployment."""
        from ray.util import get_node_ip_address

        await self._swap.want(user_config)
        if self._place is None and os.environ.get("RAY_USE_TLS") != "1":  # a line has no TLS
            try:
                self._place = await self._exchange.open(get_node_ip_address())
            except OSError as error:
                log.warning("no line can be opened here (%s): requests come through Ray", error)

    async def offer(self) -> Offer:
        """What can be asked here, and how. Serve must see the requests of what it scales by load."""
        from ray import serve

        scaled = serve.get_replica_context()._deployment_config.autoscaling_config is not None
        by_line = self._serving().by_line and not scaled
        return Offer((self._name,), self._place if by_line else None)

    async def answer(self, name: str, body: bytes, seconds: float) -> Answer:
        """See `Host.answer`."""
        del name
        return await self._serving().answer(body, seconds)

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        """See `Host.stream`."""
        del name
        async for event in self._serving().stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """See `Swap.describe`; and how many gateways ask by lines, how many requests so far."""
        del name
        self._serving()
        exchange = self._exchange
        lines = {"open": len(exchange.callers), "requests": exchange.requests}
        return self._swap.describe() | {"lines": lines}

    async def check_health(self) -> None:
        """Asked by Serve every ten seconds, which replaces a replica that raises here."""
        self._swap.check_health()

    async def __del__(self) -> None:
        """Awaited by Serve before it ends a replica, whose requests by line it does not see."""
        await self._exchange.leave()

    def _serving(self) -> Host:
        if self._swap.host is None:
            raise RequestError("unavailable", f"model '{self._name}' has no user_config yet", 1)
        return self._swap.host
