"""The Serve applications: a gateway that holds no model, and one application for each model.

Each model is an application of its own, so each is deployed, scaled and replaced by itself. The
gateway finds them by asking Serve every `REFRESH_SECONDS`. Two hops: the gateway's is what buys
shelter from slow clients and a second try when a replica dies.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.serving.bundles import Bundler
from trainyard.serving.failures import RequestError
from trainyard.serving.gateway import Answer, build_gateway
from trainyard.serving.keys import KeyRing
from trainyard.serving.options import (
    GatewayOptions,
    HostOptions,
    ModelOptions,
    SharedOptions,
    Version,
)
from trainyard.serving.sources import locate

REFRESH_SECONDS = 2.0
CALLS = 4
"""Calls to one model that are under way before requests share them; 2 per replica if that is more."""

TRIES = 3
"""Of one request, when replicas die under it. Two are not enough when they are killed in a row."""

MODEL, SHARED, GATEWAY = "Model", "SharedModels", "Gateway"
"""Names of the deployments, by which `deployments:` in serve/config.yaml refers to them."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger("ray.serve.trainyard")


class ServeModels:
    """`Models` in other Serve applications, found by their deployments' names."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._bundlers: dict[str, Bundler] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        self._waiting: list[str] = []

    def names(self) -> list[str]:
        """All that can be asked, sorted."""
        return sorted(self._handles)

    def waiting_for(self) -> list[str]:
        """Applications that cannot answer yet."""
        return self._waiting

    async def refresh(self) -> None:
        """Ask Serve what there is; a model whose replicas are lost for a moment stays known."""
        from ray import serve

        applications = (await asyncio.to_thread(serve.status)).applications
        ours = {
            application: (deployment, found.replica_states.get("RUNNING", 0))
            for application, status in applications.items()
            for deployment, found in status.deployments.items()
            if deployment in (MODEL, SHARED)
        }
        found = await asyncio.gather(
            *(self._find(app, *place) for app, place in ours.items() if place[1])
        )
        unready = [app for app, (_, replicas) in ours.items() if not replicas]
        building = [  # an application has no deployments until its builder has run
            app for app, status in applications.items()
            if not status.deployments and status.status in ("NOT_STARTED", "DEPLOYING")
        ]  # fmt: skip
        kept = [self._known(app) for app in unready]
        self._handles = {name: handle for part in [*found, *kept] for name, handle in part.items()}
        self._waiting = sorted([*unready, *building])

    def _known(self, application: str) -> dict[str, Any]:
        return {name: h for name, h in self._handles.items() if h.app_name == application}

    async def _find(self, application: str, deployment: str, replicas: int) -> dict[str, Any]:
        """Names and handle of an application's models."""
        from ray import serve

        known = self._known(application)
        handle = next(iter(known.values()), None) or serve.get_deployment_handle(
            deployment, application
        )
        try:
            async with asyncio.timeout(5):
                sizes = await handle.names.remote()
        except Exception:  # it does not answer now, for whatever reason: what was known stays known
            log.exception("the models of '%s' are not known", application)
            return known
        for name, size in sizes.items():
            if self._shapes.get(name) != (size, replicas):
                self._shapes[name] = size, replicas
                self._bundlers[name] = self._bundler(name, size, replicas)
        return dict.fromkeys(sizes, handle)

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        """The answer, by a call that it may share with other requests."""
        until = asyncio.get_running_loop().time() + seconds
        return await self._bundlers[name].ask(body, until)

    def _bundler(self, name: str, size: int, replicas: int) -> Bundler:
        async def send(requests: Sequence[tuple[bytes, float]]) -> Sequence[Answer]:
            return await self._call(name, requests)

        calls = max(CALLS, 2 * replicas) if size > 1 else 1_000_000
        return Bundler(send, calls, size)

    async def _call(self, name: str, requests: Sequence[tuple[bytes, float]]) -> Sequence[Answer]:
        """Answers; asked again, of another replica, when one dies with the requests in its hands."""
        clock = asyncio.get_running_loop().time
        call = self._handle(name).answer
        for attempt in range(1, TRIES + 1):
            try:
                left = [(body, until - clock()) for body, until in requests]
                return await call.remote(name, left)  # type: ignore[no-any-return]
            except Exception as error:
                if attempt == TRIES or not _replica_lost(error):
                    raise _unavailable(name, error) from error
                log.warning(
                    "a replica of '%s' was lost (%s); asking again", name, type(error).__name__
                )
        raise AssertionError("unreachable")

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncIterator[bytes]:
        """Events as they come; not asked again, as some may have been sent already."""
        try:
            async for event in self._handle(name, stream=True).stream.remote(name, body, seconds):
                yield event
        except Exception as error:
            raise _unavailable(name, error) from error

    async def describe(self, name: str) -> dict[str, Any]:
        """What a replica says about the model."""
        try:
            async with asyncio.timeout(30):
                return await self._handle(name).describe.remote(name)  # type: ignore[no-any-return]
        except Exception as error:
            raise _unavailable(name, error) from error

    def _handle(self, name: str, *, stream: bool = False) -> Any:
        handle = self._handles[name]
        shared = handle.deployment_name == SHARED
        if not shared and not stream:
            return handle
        return handle.options(multiplexed_model_id=name if shared else "", stream=stream)


def _replica_lost(error: Exception) -> bool:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import ReplicaUnavailableError

    return isinstance(error, RayActorError | ReplicaUnavailableError)


def _unavailable(name: str, error: Exception) -> RequestError:
    from ray.exceptions import RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RequestError):
        return cause
    log.error("model '%s' gave no answer", name, exc_info=error)
    return RequestError("unavailable", f"model '{name}' cannot answer now; try again", 1)


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
        self._refreshing = asyncio.get_running_loop().create_task(self._keep_fresh())
        return build_gateway(self._models, self._options, self._keys, behind_serve=True)

    async def _keep_fresh(self) -> None:
        while True:
            try:
                self._keys.refresh()
                await self._models.refresh()
            except Exception:  # the controller restarts, a file is half written: ask again
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
        ray_actor_options={"num_cpus": options.num_cpus},
        # A dripping client takes a place here; the limit that counts is `concurrent_requests`.
        max_ongoing_requests=100_000,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(options.model_dump(), *models)


def model_application(args: Any) -> Any:
    """Builder of one model, named as its application; `user_config` says which version."""
    from trainyard.serving.replica import ModelReplica

    options = ModelOptions.parse(args, "args of a model")
    return _replicas(ModelReplica, MODEL, options).bind(None, options.model_dump())


def shared_application(args: Any) -> Any:
    """Builder of replicas that several models share; `user_config` lists them."""
    from trainyard.serving.replica import SharedReplica

    options = SharedOptions.parse(args, "args of shared models")
    return _replicas(SharedReplica, SHARED, options).bind(options.model_dump())


def host_application(args: Any) -> Any:
    """Builder of a gateway and one model: `serve run serve.app:build model=runs/x/model`."""
    from trainyard.serving.replica import ModelReplica

    given = HostOptions.parse(args, "serve.app:build")
    options = ModelOptions(**given.model_dump(exclude={"model", "name", "keys_file"}))
    if options.threads is None:  # it has the machine to itself
        options = options.model_copy(update={"threads": os.cpu_count()})
    if Path(given.model).exists():  # else it may be a folder that only the cluster's nodes see
        locate(Version(source=given.model), options.max_parameters)
    model = _replicas(ModelReplica, MODEL, options, user_config={"source": given.model})
    name = given.name or default_name(given.model)
    return gateway_application(
        {"keys_file": given.keys_file}, model.bind(name, options.model_dump())
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
