"""Deployment of the gateway: it finds models by asking Serve every `REFRESH_SECONDS`."""

import asyncio
import logging
from typing import Any

from ray.serve.context import _get_global_client
from starlette.types import ASGIApp

from trainyard.errors import UserError
from trainyard.serving.gateway.discovery import ServeModels
from trainyard.serving.gateway.http import RayGatewayMetrics, build_gateway
from trainyard.serving.gateway.keys import KeyRing
from trainyard.serving.options import LOOPBACK, GatewayOptions

REFRESH_SECONDS = 2.0

log = logging.getLogger("ray.serve.trainyard")


class Gateway:
    """Deployment of the HTTP application."""

    def __init__(self, options: dict[str, Any], *models: Any) -> None:
        del models  # found like all others
        self._options = GatewayOptions.parse(options, "args of the gateway")
        self._models = ServeModels()
        self._keys = KeyRing(self._options.keys_file)
        _check_exposure(self._keys)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application; called by Serve after the constructor."""
        self._refreshed = asyncio.Event()
        self._refreshing = asyncio.get_running_loop().create_task(self._keep_fresh())
        return build_gateway(
            self._models, self._options, self._keys, RayGatewayMetrics(), behind_serve=True
        )

    async def check_health(self) -> None:
        """Wait until the models are known: Serve sends no request before this returns once."""
        await self._refreshed.wait()

    async def _keep_fresh(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._keys.refresh)
            except Exception:  # the keys stay as they were
                log.exception("the keys could not be refreshed")
            try:
                await self._models.refresh()
                self._refreshed.set()
            except Exception:  # the controller restarts: ask again
                log.exception("the list of models could not be refreshed")
            await asyncio.sleep(REFRESH_SECONDS)


def _check_exposure(keys: KeyRing) -> None:
    """Refuse to listen to other machines when no key is required."""
    host = _get_global_client().http_config.host
    if not keys.required and host not in LOOPBACK:
        raise UserError(
            f"Serve listens on {host} and there are no API keys; set `keys_file` in the gateway's args, "
            "or `host: 127.0.0.1` in http_options"
        )
