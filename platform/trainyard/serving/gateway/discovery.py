"""The gateway's models: which there are in Serve's other applications, and how they are asked."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import MODEL, SHARED
from trainyard.serving.transport import Line, LineError, Offer, Place

TRIES = 3
"""Of one request, when replicas die under it. Two are not enough when they are killed in a row."""

log = logging.getLogger("ray.serve.trainyard")


@dataclass(frozen=True)
class _Known:
    """A model: the handle of its deployment, and the lines to its replicas, if it is asked by lines."""

    handle: Any
    lines: Mapping[Place, Line] = field(default_factory=dict)

    def line(self) -> Line | None:
        """The one to the replica with the least to do; None when Serve is to find a replica."""
        there = [line for line in self.lines.values() if line.open_to_all]
        return min(there, key=lambda line: (line.busy, random.random()), default=None)


class ServeModels:
    """`Models` in other Serve applications, found by their deployments' names."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lines: dict[Place, Line] = {}
        self._waiting: list[str] = []

    def names(self) -> list[str]:
        """All that can be asked, sorted."""
        return sorted(self._known)

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
            *(self._find(app, deployment) for app, (deployment, n) in ours.items() if n)
        )
        idle = [app for app, (_, replicas) in ours.items() if not replicas]
        # One that autoscaling has put to rest lacks nothing: the next request wakes it.
        resting = {
            app for app in idle
            if applications[app].deployments[ours[app][0]].status == "HEALTHY" and self._known_of(app)
        }  # fmt: skip
        # An application has no deployments until its builder has run, also when it is deployed again
        # while its replicas serve.
        bare = {
            app: status.status for app, status in applications.items() if not status.deployments
        }
        kept = [self._known_of(app) for app in (*idle, *bare)]
        never = [
            app for app, status in bare.items()
            if status in ("NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED") and not self._known_of(app)
        ]  # fmt: skip
        parts = [*found, *kept]
        self._known = {name: known for part in parts for name, known in part.items()}
        used = {place for part in parts for known in part.values() for place in known.lines}
        for place in self._lines.keys() - used:
            self._lines.pop(place).hang_up()
        self._waiting = sorted([*(set(idle) - resting), *never])

    def _known_of(self, application: str) -> dict[str, _Known]:
        return {
            n: known for n, known in self._known.items() if known.handle.app_name == application
        }

    async def _find(self, application: str, deployment: str) -> dict[str, _Known]:
        """An application's models, by name."""
        from ray import serve

        known_before = self._known_of(application).items()
        # Another builder makes another deployment.
        before = {
            name: known for name, known in known_before
            if known.handle.deployment_name == deployment
        }  # fmt: skip
        handle = next(
            (known.handle for known in before.values()), None
        ) or serve.get_deployment_handle(deployment, application)
        try:
            asked = handle.broadcast("offer").results_async(timeout_s=5, return_exceptions=True)
            offers = [offer for offer in await asked if isinstance(offer, Offer)]
        except Exception:  # one does not answer now, for whatever reason
            log.exception("not all replicas of '%s' say what they have", application)
            offers = []
        if not offers:  # what was known stays known
            return before or await self._any(handle)
        lines = await self._open(offers)
        return {name: _Known(handle, lines) for offer in offers for name in offer.names}

    async def _any(self, handle: Any) -> dict[str, _Known]:
        """What any one replica has, to be asked through Serve."""
        try:
            async with asyncio.timeout(5):
                offer: Offer = await handle.offer.remote()
        except Exception:  # the next refresh asks again
            log.exception("the models of '%s' are not known", handle.app_name)
            return {}
        return {name: _Known(handle) for name in offer.names}

    async def _open(self, offers: Sequence[Offer]) -> Mapping[Place, Line]:
        """Lines to all replicas; none at all when one cannot be reached, for it would get no work."""
        places = [offer.place for offer in offers if offer.place]
        try:
            for place in places:
                known = self._lines.get(place)
                if known is None or not known.open_to_all:
                    self._lines[place] = await Line.open(place)
        except OSError as error:
            log.warning("a replica has no line (%s): requests go through Ray, slower", error)
            return {}
        if len(places) < len(offers):
            return {}
        return {place: self._lines[place] for place in places}

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        """The answer, from another replica when one dies with the request in its hands."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        for attempt in range(1, TRIES + 1):
            known = self._find_known(name)
            try:
                # The last time Serve finds a replica: it knows best when many come and go.
                if attempt < TRIES and (line := known.line()):
                    return await line.ask(body, until - clock())
                return await self._call(name, body, until - clock())
            except Exception as error:
                if attempt == TRIES or not _replica_lost(error):
                    raise _unavailable(name, error) from error
                log.warning("a replica of '%s' was lost (%r); asking again", name, error)
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, name: str, body: bytes, seconds: float) -> Answer:
        response = self._handle(name).answer.remote(name, body, seconds)
        try:
            return await response  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            response.cancel()  # else the replica computes on: Serve tells it of callers only
            raise

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        """Events as they come; not asked again, as some may have been sent already."""
        try:
            events = self._handle(name, stream=True).stream.remote(name, body, seconds)
            async for event in events:
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            events.cancel()
            raise
        except Exception as error:
            raise _unavailable(name, error) from error

    async def describe(self, name: str) -> dict[str, Any]:
        """What a replica says about the model."""
        try:
            async with asyncio.timeout(30):
                return await self._handle(name).describe.remote(name)  # type: ignore[no-any-return]
        except Exception as error:
            raise _unavailable(name, error) from error

    def _find_known(self, name: str) -> _Known:
        if (known := self._known.get(name)) is None:  # it went while the request came
            raise RequestError("not_found", "there is no such model any more")
        return known

    def _handle(self, name: str, *, stream: bool = False) -> Any:
        handle = self._find_known(name).handle
        shared = handle.deployment_name == SHARED
        if not shared and not stream:
            return handle
        return handle.options(multiplexed_model_id=name if shared else "", stream=stream)


def _replica_lost(error: Exception) -> bool:
    from ray.exceptions import ObjectLostError, RayActorError
    from ray.serve.exceptions import ReplicaUnavailableError

    # A large answer stays on the node of its replica until it is fetched, and is lost with the node.
    return isinstance(error, LineError | RayActorError | ObjectLostError | ReplicaUnavailableError)


def _unavailable(name: str, error: Exception) -> RequestError:
    from ray.exceptions import RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RequestError):
        return cause
    log.error("model '%s' gave no answer", name, exc_info=error)
    return RequestError("unavailable", f"model '{name}' cannot answer now; try again", 1)
