"""Deployment of the gateway, which reads the list of models from Serve every `REFRESH_SECONDS`."""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import psutil
from ray.serve.context import _get_global_client
from starlette.types import ASGIApp

from trainyard.errors import UserError
from trainyard.serving.gateway.discovery import ServeModels
from trainyard.serving.gateway.http import RayGatewayMetrics, build_gateway
from trainyard.serving.gateway.keys import KeyRing, check_exposure
from trainyard.serving.gateway.landing import banner
from trainyard.serving.options import WILDCARDS, GatewayOptions, url_host

REFRESH_SECONDS, WAITING_SECONDS = 2.0, 0.2
"""Seconds between two refreshes, and between two while a configured model is not loaded yet."""

log = logging.getLogger("ray.serve.trainyard")


class Gateway:
    """Gateway as a Serve deployment.

    Args:
        options: Fields of `GatewayOptions`.
        names: Names of the models that are deployed in the gateway's application.
        models: Serve's handles of these models, unused.
    """

    def __init__(self, options: dict[str, Any], names: Sequence[str] = (), *models: Any) -> None:
        del models  # discovered like all other models
        self._options = GatewayOptions.parse(options, "args of the gateway")
        self._models = ServeModels(names)
        self._keys = KeyRing(self._options.keys_file)
        self._announced = False
        http = _get_global_client().http_config
        check_exposure(
            self._options.keys_file,
            http.host,
            remedy="set `keys_file` in the gateway's args, or `host: 127.0.0.1` in http_options",
        )
        check_port(http.host, http.port)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self._refreshed = asyncio.Event()
        self._refreshing = asyncio.get_running_loop().create_task(self._keep_fresh())
        return build_gateway(
            self._models, self._options, self._keys, RayGatewayMetrics(), behind_serve=True
        )

    async def check_health(self) -> None:
        """Wait for the first list of models.

        Serve sends no request until this has returned once.
        """
        await self._refreshed.wait()

    async def _keep_fresh(self) -> None:
        logged = None
        while True:
            try:
                await asyncio.to_thread(self._keys.refresh)
                logged = None
            except Exception as error:  # keep the former keys
                if str(error) != logged:  # a missing file fails each time
                    log.exception("the keys could not be refreshed")
                logged = str(error)
            try:
                await self._models.refresh()
                self._refreshed.set()
                self._announce()
            except Exception:  # the controller may be restarting: try again
                log.exception("the list of models could not be refreshed")
            waiting = self._models.waiting_for() or not self._refreshed.is_set()
            await asyncio.sleep(
                min(WAITING_SECONDS if waiting else REFRESH_SECONDS, REFRESH_SECONDS)
            )

    def _announce(self) -> None:
        names = self._models.names()
        if not self._announced and names and not self._models.waiting_for():
            self._announced = True
            http = _get_global_client().http_config
            base = f"http://{url_host(http.host)}:{http.port}"
            log.info("%s", banner(base, names, key=self._keys.required))


def check_port(host: str, port: int) -> None:
    """Refuse a port on which another process listens: Linux would split clients between the two.

    Serve binds its port so that several processes of one user can share it. Processes of this Ray
    descend from the raylet, which is this process's parent.

    Raises:
        UserError: A process of this user that is not part of this Ray listens on the port.
    """
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS, where two servers cannot share a port
        return
    for found in connections:
        if found.status != psutil.CONN_LISTEN or found.laddr.port != port:
            continue
        if found.laddr.ip not in {host, *WILDCARDS} and host not in WILDCARDS:
            continue
        if found.pid is not None and not _is_ours(found.pid):  # None: another user's
            raise UserError(
                f"port {port} is already in use by process {found.pid}, and answers would come from "
                "either server at random; stop it, or set another `port` in http_options"
            )


def _is_ours(pid: int) -> bool:
    """Return whether this Ray started the process, or the process has ended.

    HAProxy may outlive its parent, so every process of that name counts.
    """
    try:
        process = psutil.Process(pid)
        return process.name() == "haproxy" or os.getppid() in {p.pid for p in process.parents()}
    except psutil.Error:  # the process ended meanwhile
        return True
