"""Versions of a model: the next version is loaded next to the current one and replaces it.

A version that cannot be loaded is refused. Availability comes first: a replica never waits for a
new version while another one serves, or while one that served before can be loaded.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from typing import Any

from trainyard.errors import UserError, one_line
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import RayReplicaMetrics
from trainyard.serving.replica.threads import start
from trainyard.serving.replica.turns import NotNeededError, Turn, turn_file
from trainyard.serving.replica.version_records import (
    LOAD_SECONDS,
    Build,
    CutOffError,
    LastGood,
    LoadAttempts,
)

GO_BACK_SECONDS = 300.0
"""Maximum seconds to load a former version into a replica without one; then the next one is
tried."""

SUPERSEDED_SECONDS = 60.0
"""Maximum seconds that a load may continue after another version was wanted. Two loads at once need
the memory of both."""

POLL_SECONDS = 0.5
"""Seconds between two checks whether the version that is being loaded is still wanted."""

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 900.0
"""Seconds from a refusal to the next attempt at the version, and their maximum. The wait doubles
each time: files may still be copied, or the device may have been full."""

log = logging.getLogger("ray.serve.trainyard")


class VersionedModel:
    """Model in one replica: `want` loads a version, `host` answers requests, `close` frees it.

    Attributes:
        host: Version that answers; None until one is loaded.
        refused: None, or `version`, `error` and `tries` of a wanted version that could not be
            loaded.
    """

    def __init__(
        self,
        name: str,
        options: ModelOptions,
        application: str,
        build: Build,
        load_seconds: float = LOAD_SECONDS,
        one_load: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        """Take the options of a model, without loading one.

        Args:
            name: Name of the model.
            options: Options of its application.
            application: Name of its application in Serve.
            build: Run of the application's builder.
            load_seconds: Maximum seconds to load a version.
            one_load: Context of each load, for models that are loaded one at a time.
        """
        self.host: Host | None = None
        self.refused: dict[str, Any] | None = None
        self._name = name
        self._options = options
        self._load_seconds = load_seconds
        self._one_load = one_load
        self._last_good = LastGood(application, build, name)
        self._attempts = LoadAttempts(application, build, name)
        self._starts = LoadAttempts(application, build, name, kind="start")
        self._metrics = RayReplicaMetrics(name)
        self._serves: Version | None = None
        self._wanted: Any = None
        self._tries = 0
        self._retry_at = 0.0
        self._in_turn = asyncio.Lock()  # the version wanted last must win
        self._task: asyncio.Task[None] | None = None
        self._overdue: dict[asyncio.Future[Host], Version] = {}
        self._ends = False
        digest = hashlib.sha256(f"{application}/{name}".encode()).hexdigest()[:16]
        self._node_lock = turn_file(f"load-{digest}")

    async def want(self, version: Any) -> None:
        """Set the version that this replica must serve.

        While another version serves, this returns at once. The wanted one is loaded in a thread,
        warmed up, and takes over between two requests. A replica that serves nothing returns once a
        version serves: a recorded one if the wanted one was never loaded, else the wanted one.

        A version that cannot be loaded is refused if another one can be. An exception would make
        Serve stop the replica, and with it the version that works.

        Raises:
            UserError: The version cannot be loaded, and there is no other.
        """
        if self.host is not None and version == self._wanted:
            return  # Serve sends the version again when it renumbers replicas
        self._wanted, self._tries, self._retry_at, self.refused = version, 0, 0.0, None
        if self.host is None:
            async with self._in_turn:
                await self._load_any()
        self._load_if_due()

    async def check_health(self) -> None:
        """Check the version that serves; retry a refused version in the background.

        Raises:
            RuntimeError: The version cannot answer.
        """
        if self.host is not None and (reason := await self.host.find_fault()):
            raise RuntimeError(f"model '{self._name}': {reason}")
        self._load_if_due()

    def describe(self) -> dict[str, Any]:
        """Describe the version that serves, see `Host.describe`.

        Until the wanted version serves, add `refused`, or `loading` with its `version`.
        """
        about = self.host.describe() if self.host else {}
        if self.refused:
            return about | {"refused": self.refused}
        return about | ({"loading": {"version": _plain(self._wanted)}} if self._waits else {})

    def stop_loading(self) -> None:
        """Load no further version, since Serve is about to end the replica.

        The record of an attempt that the end cuts off is removed.
        """
        self._ends = True
        self._attempts.abandon(for_good=True)
        self._starts.abandon(for_good=True)

    def close(self) -> None:
        """Free the model; a version that is being loaded is freed after its load."""
        self.stop_loading()
        if self.host is not None:
            self.host.close()

    @property
    def _waits(self) -> bool:
        """True until the wanted version serves."""
        return self._serves is None or _parsed(self._wanted) != self._serves

    async def _load_any(self) -> None:
        """Load a version into a replica without one, see `want`.

        A recorded version whose start ended a process comes after the wanted one.
        """
        good = await asyncio.to_thread(self._last_good.read)
        former = [Version(**each["version"]) for each in good]
        wanted = _parsed(self._wanted)
        others = [version for version in former if version != wanted]
        if wanted not in former and await self._go_back(others, recorded=True):
            return  # the wanted one may hang or end the process, so it is loaded next to this one
        try:
            await self._load_wanted(good[0]["task"] if good else None)
        except UserError as error:
            if not await self._go_back(others, recorded=False):
                raise
            self._refuse(error)

    async def _go_back(self, former: Sequence[Version], *, recorded: bool) -> bool:
        """Load the first of `former` that can be loaded; return whether one serves.

        With `recorded`, record each start, and leave out a version whose start ended a process.
        """
        seconds = min(GO_BACK_SECONDS, self._load_seconds)
        for version in former:
            starting = self._starts.first(version, lambda: True) if recorded else nullcontext()
            try:
                async with starting:
                    host = await self._load(version, None, seconds)
            except UserError as error:
                log.error("model '%s' cannot go back: %s", self._name, error)
                continue
            if host is not None and await self._take(version, host):
                await asyncio.to_thread(self._starts.forget)
                return True
        return False

    def _load_if_due(self) -> None:
        if self._is_due() and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._load_in_background())

    def _is_due(self) -> bool:
        waits = self._waits and not self._ends and time.monotonic() >= self._retry_at
        # A load that hangs is not begun again: its thread cannot be stopped.
        return waits and _parsed(self._wanted) not in self._overdue.values()

    async def _load_in_background(self) -> None:
        async with self._in_turn:
            while self._is_due():
                wanted = self._wanted
                try:
                    await self._load_wanted(self.host.predictor.task if self.host else None)
                except UserError as error:
                    if self._wanted == wanted:
                        self._refuse(error)
                except Exception as error:
                    log.exception("model '%s': the next version cannot be loaded", self._name)
                    if self._wanted == wanted:
                        self._refuse(UserError(f"the version cannot be loaded ({one_line(error)})"))

    async def _load_wanted(self, task: str | None) -> None:
        """Load the wanted version and let it take over, unless another one is wanted meanwhile.

        If no replica has loaded the version yet, record the attempt.

        Args:
            task: Task that the version must have; None for any.

        Raises:
            UserError: The version cannot be loaded, or earlier attempts ended their process.
        """
        wanted = self._wanted
        version = Version.parse(wanted, f"user_config of model '{self._name}'")
        async with self._attempt(version), self._turn():
            host = await self._load(version, task, self._load_seconds)
            if host is not None and await self._take(version, host, wanted):
                self.refused = None

    @asynccontextmanager
    async def _attempt(self, version: Version) -> AsyncIterator[None]:
        wanted = self._wanted

        def is_proven() -> bool:
            return any(good["version"] == version.model_dump() for good in self._last_good.read())

        def is_decided() -> bool:
            return self._wanted != wanted or self._ends or is_proven()

        if await asyncio.to_thread(is_proven):
            yield
        else:
            await asyncio.to_thread(self._attempts.forget, version)
            async with self._attempts.first(version, is_decided):
                yield

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let the serving replicas of a node load their next version one after another.

        Otherwise a deploy would need the memory of two versions in all replicas at once.
        """
        wanted, until = self._wanted, time.monotonic() + self._load_seconds
        with closing(Turn(self._node_lock)) as turn:
            while self.host is not None and time.monotonic() < until and not turn.take():
                await asyncio.sleep(POLL_SECONDS)
                if self._wanted != wanted or self._ends:
                    break
            yield

    async def _load(self, version: Version, task: str | None, seconds: float) -> Host | None:
        """Load a version in a thread.

        Returns None if the version is no longer needed: another one is wanted, or the replica ends.
        A load that has begun may then take SUPERSEDED_SECONDS more.

        Raises:
            UserError: The version cannot be loaded, has another task than `task`, or takes longer
                than `seconds`. A late host is closed.
        """
        wanted, given_up = self._wanted, threading.Event()

        def is_needed() -> bool:
            return self._wanted == wanted and not self._ends and not given_up.is_set()

        async with self._one_load():
            if not is_needed():
                return None
            loading = asyncio.wrap_future(start(lambda: self._load_here(version, task, is_needed)))
            began, needless_since = time.monotonic(), None
            while not (await asyncio.wait([loading], timeout=POLL_SECONDS))[0]:
                now = time.monotonic()
                needless_since = None if is_needed() else needless_since or now
                if needless_since is not None and now >= needless_since + SUPERSEDED_SECONDS:
                    self._give_up(loading, version)
                    return None
                if now >= began + seconds:
                    given_up.set()
                    self._give_up(loading, version)
                    raise UserError(
                        f"model {version.source} did not load within {seconds:.0f} s; check that the "
                        "storage of its files answers, and it is loaded again"
                    )
            try:
                return loading.result()
            except NotNeededError:  # it may be wanted again by now, and is then loaded again
                return None

    def _give_up(self, loading: "asyncio.Future[Host]", version: Version) -> None:
        self._overdue[loading] = version
        loading.add_done_callback(self._close_late)

    def _close_late(self, loading: "asyncio.Future[Host]") -> None:
        del self._overdue[loading]
        if loading.exception() is None:
            loading.result().close()

    def _load_here(self, version: Version, task: str | None, is_needed: Callable[[], bool]) -> Host:
        host, fault = None, None
        try:
            host = Host.load(version, self._options, self._metrics, is_needed)
        except NotNeededError:
            raise
        except UserError as error:
            fault = str(error)
        except BaseException as error:  # readers of broken files raise errors of any class
            log.exception("model '%s' cannot be loaded", self._name)
            reason = one_line(f"{type(error).__name__}: {error}", 240)
            fault = (
                f"model {version.source} cannot be loaded ({reason}); it must be a folder as "
                "save_pretrained writes it, and fit into memory"
            )
        if host is not None and task is not None and host.predictor.task != task:
            fault = (
                f"model {version.source} is for {host.predictor.task} and '{self._name}' answers {task}; "
                "give it another name, or set `task` in args to replace one by the other"
            )
            host.close()
            host = None
        if host is None:
            # Raised outside of `except`: the frames of the first error would keep the weights.
            raise UserError(fault or f"model {version.source} cannot be loaded")
        return host

    async def _take(self, version: Version, host: Host, wanted: Any = None) -> bool:
        """Record a version as good, and let it take over from the one that serves.

        Returns False, and closes the host, if the replica ends or no longer wants `wanted`.
        """
        good = {"version": version.model_dump(), "task": host.predictor.task}
        await asyncio.to_thread(self._last_good.write, good)
        if self._ends or (wanted is not None and self._wanted != wanted):
            host.close()
            return False
        replaced, self.host, self._serves = self.host, host, version
        if replaced is not None:
            replaced.close()
        return True

    def _refuse(self, error: UserError) -> None:
        doublings = min(self._tries, 10)  # more would overflow a float in the end
        wait = min(RETRY_SECONDS * 2**doublings, LONGEST_RETRY_SECONDS)
        if isinstance(error, CutOffError):
            wait = min(wait, error.seconds)
        self._tries, self._retry_at = self._tries + 1, time.monotonic() + wait
        self.refused = {
            "version": _plain(self._wanted), "error": str(error), "tries": self._tries,
        }  # fmt: skip
        log.error("model '%s' keeps its version, next try in %.0f s: %s", self._name, wait, error)


def _parsed(wanted: Any) -> Version | None:
    try:
        return Version.parse(wanted, "")
    except UserError:
        return None


def _plain(wanted: Any) -> Any:
    return wanted.model_dump() if isinstance(wanted, Version) else wanted
