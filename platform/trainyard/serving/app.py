"""The Serve applications: a gateway that holds no model, and one application for each model.

Each model is an application of its own, so each is deployed, scaled and replaced by itself. The
gateway finds them by asking Serve every `REFRESH_SECONDS`. Two hops: the gateway's is what buys
shelter from slow clients and a second try when a replica dies.
"""

import asyncio
import logging
import os
import re
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.serving.gateway.discovery import ServeModels
from trainyard.serving.gateway.gateway import build_gateway
from trainyard.serving.gateway.keys import KeyRing
from trainyard.serving.gateway.metrics import RayGatewayWatch
from trainyard.serving.options import (
    MODEL,
    SHARED,
    GatewayOptions,
    HostOptions,
    ModelOptions,
    SharedOptions,
    Version,
)
from trainyard.serving.replica.last_good import Build
from trainyard.serving.replica.model_source import locate

REFRESH_SECONDS = 2.0

GATEWAY = "Gateway"
"""Name of its deployment in serve/config.yaml."""

ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""The gateway never blocks, so it runs on its replica's own event loop: else each part of a request and of
its answer wakes another thread (0.3 to 0.6 ms a request behind the fast ingress)."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger("ray.serve.trainyard")


class Gateway:
    """Deployment of the HTTP application."""

    def __init__(self, options: dict[str, Any], *models: Any) -> None:
        del models  # found like all others
        self._options = GatewayOptions.parse(options, "args of the gateway")
        self._models = ServeModels()
        self._keys = KeyRing(self._options.keys_file)
        _check_exposure(self._keys)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once the constructor is done."""
        self._refreshed = asyncio.Event()
        self._refreshing = asyncio.get_running_loop().create_task(self._keep_fresh())
        return build_gateway(
            self._models, self._options, self._keys, RayGatewayWatch(), behind_serve=True
        )

    async def check_health(self) -> None:
        """Serve lets requests come when this returned once: not before the models are known."""
        await self._refreshed.wait()

    async def _keep_fresh(self) -> None:
        while True:
            try:
                self._keys.refresh()
            except Exception:  # a file is half written: the keys stay as they were
                log.exception("the keys could not be refreshed")
            try:
                await self._models.refresh()
                self._refreshed.set()
            except Exception:  # the controller restarts: ask again
                log.exception("the list of models could not be refreshed")
            await asyncio.sleep(REFRESH_SECONDS)


def _check_exposure(keys: KeyRing) -> None:
    """Refuse to listen to other machines when anybody could ask."""
    from ray.serve.context import _get_global_client

    host = _get_global_client().http_config.host
    if not keys.required and host not in LOOPBACK:
        raise UserError(
            f"Serve listens on {host} and there are no API keys; set `keys_file` in the gateway's args, "
            "or `host: 127.0.0.1` in http_options"
        )


def gateway_application(args: Any, *models: Any) -> Any:
    """Builder of the gateway from its `args`; `models` are deployed along with it."""
    from ray import serve

    options = GatewayOptions.parse(args, "args of the gateway")
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name=GATEWAY,
        num_replicas=options.num_replicas,
        ray_actor_options={"num_cpus": options.num_cpus, "runtime_env": {"env_vars": ONE_LOOP}},
        # A dripping client takes a place here; the limit that counts is `concurrent_requests`.
        max_ongoing_requests=100_000,
        max_surge_percent=100,  # also a single one is replaced only when the next is ready
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(options.model_dump(), *models)


def model_application(args: Any) -> Any:
    """Builder of one model, named as its application; `user_config` says which version."""
    from trainyard.serving.replica.deployment import ModelReplica

    options = ModelOptions.parse(args, "args of a model")
    told = options.model_dump()
    return _replicas(ModelReplica, MODEL, options).bind(None, told, Build.of(told))


def shared_application(args: Any) -> Any:
    """Builder of replicas that several models share; `user_config` lists them."""
    from trainyard.serving.replica.shared import SharedReplica

    options = SharedOptions.parse(args, "args of shared models")
    told = options.model_dump()
    return _replicas(SharedReplica, SHARED, options).bind(told, Build.of(told))


def host_application(args: Any) -> Any:
    """Builder of a gateway and one model: `serve run serve.app:build model=runs/x/model`."""
    from trainyard.serving.replica.deployment import ModelReplica

    given = HostOptions.parse(args, "serve.app:build")
    options = ModelOptions(**given.model_dump(exclude={"model", "name", "keys_file"}))
    if options.threads is None:  # it has the machine to itself
        options = options.model_copy(update={"threads": os.cpu_count()})
    if Path(given.model).exists():  # else it may be a folder that only the cluster's nodes see
        locate(Version(source=given.model), options.max_parameters)
    model = _replicas(ModelReplica, MODEL, options, user_config={"source": given.model})
    name = given.name or default_name(given.model)
    return gateway_application(
        {"keys_file": given.keys_file},
        model.bind(name, options.model_dump(), Build.of(given.model_dump())),
    )


def default_name(source: str) -> str:
    """What a model is called when nobody says: its run, or the last part of its source."""
    path = Path(source.removeprefix("package:"))
    last = path.absolute().parent.name if path.name == "model" else path.name
    name = re.sub("[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:96]
    return name or "model"


def _replicas(replica: type[Any], name: str, options: ModelOptions, **more: Any) -> Any:
    from ray import serve

    if options.autoscaling is None:
        more["num_replicas"] = options.num_replicas or 1
    else:
        more["autoscaling_config"] = options.autoscaling
    return serve.deployment(
        replica,
        name=name,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        # The batcher has the queue, bounded in tokens; Serve must not keep one in front of it.
        max_ongoing_requests=100_000,
        max_constructor_retry_count=2,  # a model that is broken stays broken
        max_surge_percent=100,  # the next replica is ready before the old one goes
        logging_config={"enable_access_log": False},
        **more,
    )
