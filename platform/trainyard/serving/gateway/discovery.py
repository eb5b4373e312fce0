"""Find models in Serve's other applications, choose a replica, retry after a lost replica."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import MODEL, SHARED
from trainyard.serving.transport import Address, Connection, ConnectionLost, ReplicaInfo

MAX_ATTEMPTS = 5
"""Maximum attempts at a request. Most failed attempts reach a replica that was lost before the
request was sent."""

MAX_DEATHS = 2
"""Number of replica deaths during a request at which the request fails, as their likely cause. So a
request is retried once after a death."""

SUSPECT_SECONDS = 1.0
"""Maximum seconds that a request retried after a death waits for other such requests, see
`_Model.suspects`."""

INFO_SECONDS = 30.0
"""Maximum age, in seconds, of the replicas' reports while Serve reports no change."""

LOADING = "still loads; send the request again"
FAILED = "could not be loaded; `serve status` has the reason"

log = logging.getLogger("ray.serve.trainyard")


@dataclass(eq=False)
class _Model:
    """Handle of a model's deployment, and connections to its replicas.

    Attributes:
        unreachable: Number of replicas that should have a connection and have none.
        through_serve: Requests in flight through the handle.
        suspects: Lock for requests retried after the death of a replica, one at a time. One of
            these requests may have caused the death; alone, it cannot make the others fail a second
            time.
    """

    handle: DeploymentHandle[Any]
    connections: Mapping[Address, Connection] = field(default_factory=dict)
    unreachable: int = 0
    through_serve: int = 0
    suspects: asyncio.Lock = field(default_factory=asyncio.Lock)

    def choose(self) -> Connection | None:
        """Return the usable connection with the least load, or None to let Serve choose a replica.

        Replicas without a connection get their share of the requests through Serve.
        """
        targets: list[tuple[float, float, Connection | None]] = [
            (found.load, random.random(), found)
            for found in self.connections.values()
            if found.usable
        ]
        if self.unreachable:
            targets.append((self.through_serve / self.unreachable, random.random(), None))
        return min(targets)[2] if targets else None


@dataclass(frozen=True)
class _Snapshot:
    """Last reports of an application's replicas.

    Attributes:
        state: Serve's view of the application at the time.
        at: Time of the reports, in monotonic seconds.
    """

    state: tuple[Any, ...]
    at: float


class ServeModels:
    """Implement `Models` with Serve's other applications, found by names of their deployments."""

    def __init__(self, deployed_with: Sequence[str] = ()) -> None:
        """Start without models, until the first `refresh`.

        Args:
            deployed_with: Names of the models in the gateway's own application. Serve's
                configuration has no entry for them.
        """
        self._deployed_with = deployed_with
        self._models: dict[str, _Model] = {}
        self._connections: dict[Address, Connection] = {}
        self._snapshots: dict[str, _Snapshot] = {}
        self._descriptions: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._waiting: list[str] = []
        self._loading: dict[str, str] = {}

    def names(self) -> list[str]:
        return sorted(self._models)

    def waiting_for(self) -> list[str]:
        return self._waiting

    def loading(self) -> dict[str, str]:
        return {name: why for name, why in self._loading.items() if name not in self._models}

    async def refresh(self) -> None:
        """Read the applications from Serve.

        A model stays listed while its replicas are lost: Serve replaces them.
        """
        applications = (await asyncio.to_thread(serve.status)).applications
        ours = {
            application: (name, deployment.replica_states.get("RUNNING", 0))
            for application, status in applications.items()
            for name, deployment in status.deployments.items()
            if name in (MODEL, SHARED)
        }
        found = await asyncio.gather(
            *(
                self._find(app, deployment, (applications[app].last_deployed_time_s,
                           applications[app].status, deployment, running))
                for app, (deployment, running) in ours.items() if running
            )
        )  # fmt: skip
        idle = [app for app, (_, running) in ours.items() if not running]
        # An application that autoscaling scaled to zero is ready: the next request starts a replica.
        resting = {
            app for app in idle
            if applications[app].deployments[ours[app][0]].status == "HEALTHY" and self._of(app)
        }  # fmt: skip
        # Serve lists no deployments until an application's builder has run, even when the
        # application is deployed again and its replicas serve.
        bare = {
            app: status.status for app, status in applications.items() if not status.deployments
        }
        kept = [self._of(app) for app in (*idle, *bare)]
        never = [
            app for app, status in bare.items()
            if status in ("NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED") and not self._of(app)
        ]  # fmt: skip
        parts = [*found, *kept]
        self._models = {name: model for part in parts for name, model in part.items()}
        used = {addr for part in parts for model in part.values() for addr in model.connections}
        for address in self._connections.keys() - used:
            self._connections.pop(address).close()
        self._waiting = sorted([*(set(idle) - resting), *never])
        self._loading = await asyncio.to_thread(self._names_of, self._waiting, applications)

    def _names_of(self, waiting: list[str], applications: Mapping[str, Any]) -> dict[str, str]:
        """Return the models of waiting applications, each with the reason for waiting."""
        if not waiting:
            return {}
        configured: dict[str, str] = {}
        for name, details in _get_global_client().get_serve_details()["applications"].items():
            config = details.get("deployed_app_config")
            if config is None:
                configured |= dict.fromkeys(self._deployed_with, name)
                continue
            for deployment in config.get("deployments") or ():
                shared = (deployment.get("user_config") or {}).get("models")
                one = (config.get("args") or {}).get("name") or name
                # Names may have any type: the replicas check them.
                names = shared if isinstance(shared, Mapping) else [one]
                configured |= dict.fromkeys(map(str, names), name)
        states = {app: applications[app].status for app in waiting}
        return {
            model: FAILED if states[app] == "DEPLOY_FAILED" else LOADING
            for model, app in configured.items()
            if app in states
        }

    def _of(self, application: str) -> dict[str, _Model]:
        return {
            name: model for name, model in self._models.items()
            if model.handle.app_name == application
        }  # fmt: skip

    async def _find(
        self, application: str, deployment: str, state: tuple[Any, ...]
    ) -> dict[str, _Model]:
        """Return the models of an application, by name.

        The replicas report their models only after a change of `state`, or after `INFO_SECONDS`.

        Args:
            application: Name of the application.
            deployment: Name of its deployment.
            state: Serve's view of the application; its last entry is the number of running
                replicas.
        """
        before = {
            name: model for name, model in self._of(application).items()
            if model.handle.deployment_name == deployment  # it changes with the builder
        }  # fmt: skip
        last = self._snapshots.get(application)
        if (
            before
            and last is not None
            and last.state == state
            and time.monotonic() - last.at < INFO_SECONDS
            and all(c.usable for model in before.values() for c in model.connections.values())
        ):
            return before
        handle = next(
            (model.handle for model in before.values()), None
        ) or serve.get_deployment_handle(deployment, application)
        try:
            results = handle.broadcast("info").results_async(timeout_s=5, return_exceptions=True)
            infos = [info for info in await results if isinstance(info, ReplicaInfo)]
        except Exception:  # replicas fail with errors of any class
            log.exception("not all replicas of '%s' report their models", application)
            infos = []
        if not infos:  # keep the former models
            return before or await self._ask_any(handle)
        connections = await self._connect([info.address for info in infos if info.address])
        unreachable = len(infos) - len(connections) if any(info.address for info in infos) else 0
        models = {name: before.get(name) or _Model(handle) for info in infos for name in info.names}
        for model in models.values():
            model.connections, model.unreachable = connections, unreachable
        if len(infos) == state[-1] and not unreachable:
            self._snapshots[application] = _Snapshot(state, time.monotonic())
        else:
            self._snapshots.pop(application, None)
        return models

    async def _ask_any(self, handle: DeploymentHandle[Any]) -> dict[str, _Model]:
        try:
            async with asyncio.timeout(5):
                info: ReplicaInfo = await handle.info.remote()
        except Exception:  # the next refresh asks again
            log.exception("the models of '%s' are unknown", handle.app_name)
            return {}
        return {name: _Model(handle) for name in info.names}

    async def _connect(self, addresses: Sequence[Address]) -> dict[Address, Connection]:
        new = [
            address for address in addresses
            if (former := self._connections.get(address)) is None or not former.usable
        ]  # fmt: skip
        opened = await asyncio.gather(*map(Connection.open, new), return_exceptions=True)
        for address, connection in zip(new, opened, strict=True):
            if isinstance(connection, Connection):
                self._connections[address] = connection
                continue
            self._connections.pop(address, None)
            log.warning(
                "no connection to a replica (%r): its requests go through Serve, slower", connection
            )
        return {a: self._connections[a] for a in addresses if a in self._connections}

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        """Return the answer of a model, see `Models.ask`; retry a request whose replica is lost.

        A request that a replica may have computed is retried once.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        deaths = 0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            model = self._model(name)
            try:
                patience = min(SUSPECT_SECONDS, (until - clock()) / 4)
                async with _alone(model.suspects, patience) if deaths else contextlib.nullcontext():
                    # Serve chooses in the last attempt: it knows best which replicas are alive.
                    if attempt < MAX_ATTEMPTS and (connection := model.choose()):
                        return await connection.ask(body, until - clock())
                    grpc = bool(model.unreachable) and attempt == 1
                    return await self._call(model, name, body, until - clock(), grpc=grpc)
            except Exception as error:
                deaths += _is_death(error)
                if not _is_loss(error) or deaths == MAX_DEATHS or attempt == MAX_ATTEMPTS:
                    raise _unavailable(name, error) from error
                log.warning("a replica of '%s' was lost (%r); trying again", name, error)
        raise AssertionError("the last attempt returns or raises")

    async def _call(
        self, model: _Model, name: str, body: bytes, seconds: float, *, grpc: bool
    ) -> Answer:
        handle = _handle(model, name)
        if grpc:  # faster than a Ray call
            handle = handle.options(_by_reference=False)
        response = handle.answer.remote(name, body, seconds)
        model.through_serve += 1
        try:
            answer: Answer = await response
        except asyncio.CancelledError:
            response.cancel()  # Serve does not cancel the replica's work otherwise
            raise
        finally:
            model.through_serve -= 1
        return answer

    async def stream(
        self, name: str, body: bytes, seconds: float
    ) -> AsyncGenerator[Answer | bytes]:
        """Stream the answer of a model, see `Models.stream`.

        A request whose replica is lost is retried until its first event was sent.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        deaths, begun = 0, False
        for attempt in range(1, MAX_ATTEMPTS + 1):
            model = self._model(name)
            left = until - clock()
            events = _handle(model, name, stream=True).stream.remote(name, body, left)
            try:
                async for event in events:
                    begun = True
                    yield event
                return
            except (asyncio.CancelledError, GeneratorExit):
                events.cancel()
                raise
            except Exception as error:
                deaths += _is_death(error)
                last = begun or deaths == MAX_DEATHS or attempt == MAX_ATTEMPTS
                if last or not _is_loss(error):
                    raise _unavailable(name, error) from error
                log.warning("a replica of '%s' was lost (%r); trying again", name, error)

    async def describe(self, name: str) -> dict[str, Any]:
        """Describe a model, see `Models.describe`; simultaneous requests share one call."""
        task = self._descriptions.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._describe(name))
            self._descriptions[name] = task
            task.add_done_callback(lambda done: self._described(name, done))
        return await asyncio.shield(task)

    async def _describe(self, name: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(30):
                handle = _handle(self._model(name), name)
                return await handle.describe.remote(name)  # type: ignore[no-any-return]
        except Exception as error:
            raise _unavailable(name, error) from error

    def _described(self, name: str, task: "asyncio.Task[dict[str, Any]]") -> None:
        self._descriptions.pop(name)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all clients may have left

    def _model(self, name: str) -> _Model:
        if (model := self._models.get(name)) is None:  # removed since the request was admitted
            raise RequestError("not_found", f"no model named '{name}' any more")
        return model


def _handle(model: _Model, name: str, *, stream: bool = False) -> DeploymentHandle[Any]:
    shared = model.handle.deployment_name == SHARED
    if not shared and not stream:
        return model.handle
    return model.handle.options(multiplexed_model_id=name if shared else "", stream=stream)


@contextlib.asynccontextmanager
async def _alone(lock: asyncio.Lock, patience: float) -> AsyncGenerator[None]:
    """Hold `lock` inside the block, or continue without it after `patience` seconds.

    Most requests in flight at a death did not cause it. Long requests would miss their deadline if
    each waited for all others.
    """
    try:
        await asyncio.wait_for(lock.acquire(), patience)
    except TimeoutError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _is_loss(error: Exception) -> bool:
    # A large answer stays on the node of its replica until it is fetched, and is lost with the node.
    return isinstance(
        error, ConnectionLost | RayActorError | ObjectLostError | ReplicaUnavailableError
    )


def _is_death(error: Exception) -> bool:
    if isinstance(error, ConnectionLost):
        return error.in_work
    return isinstance(error, RayActorError | ObjectLostError)


def _unavailable(name: str, error: Exception) -> RequestError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RequestError):
        return cause
    log.error("model '%s' gave no answer", name, exc_info=error)
    return RequestError("unavailable", f"model '{name}' cannot answer now; try again", 1)
