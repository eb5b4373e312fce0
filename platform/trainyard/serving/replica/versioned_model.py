"""Versions of a model: the next version is loaded next to the current one and replaces it.

A version that cannot be loaded is refused. What served comes first: a replica never waits for a new
version while another one serves, or while one that served before can be loaded.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from trainyard.errors import UserError, one_line
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import RayReplicaMetrics
from trainyard.serving.replica.threads import start
from trainyard.serving.replica.version_records import Build, LastGood, LoadAttempts

LOAD_SECONDS = 1800.0
"""Maximum seconds to load a version; then it is refused. Its files may lie in a storage that
hangs."""

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
        one_load: asyncio.Lock | None = None,
    ) -> None:
        """Take the options of a model, without loading one.

        Args:
            name: Name of the model.
            options: Options of its application.
            application: Name of its application in Serve.
            build: Run of the application's builder.
            load_seconds: Maximum seconds to load a version.
            one_load: Lock held during a load, for models that are loaded one at a time.
        """
        self.host: Host | None = None
        self.refused: dict[str, Any] | None = None
        self._name = name
        self._options = options
        self._load_seconds = load_seconds
        self._last_good = LastGood(application, build, name)
        self._attempts = LoadAttempts(application, build, name)
        self._metrics = RayReplicaMetrics(name)
        self._serves: Version | None = None
        self._wanted: Any = None
        self._waits = False  # the wanted version does not serve yet
        self._tries = 0
        self._retry_at = 0.0
        self._loading = one_load or asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._overdue: dict[asyncio.Future[Host], Any] = {}
        self._closed = False

    async def want(self, version: Any) -> None:
        """Make a version the one that this replica shall serve.

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
        self._wanted, self._tries, self._retry_at = version, 0, 0.0
        self._waits, self.refused = self._serves is None or _parsed(version) != self._serves, None
        if self.host is None:
            async with self._loading:
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

    def abandon(self) -> None:
        """Remove the record of an attempt that Serve is about to end."""
        self._attempts.abandon()

    def close(self) -> None:
        """Free the model; a version that is being loaded is freed after its load."""
        self._closed = True
        self.abandon()
        if self.host is not None:
            self.host.close()

    async def _load_any(self) -> None:
        """Load a version into a replica without one, see `want`."""
        good = await asyncio.to_thread(self._last_good.read)
        former = [Version(**each["version"]) for each in good]
        wanted = _parsed(self._wanted)
        others = [version for version in former if version != wanted]
        is_proven = wanted in former
        if not is_proven and await self._go_back(others):
            return  # the wanted one may hang or end the process, so it is loaded next to this one
        try:
            await self._load_wanted(good[0]["task"] if good else None)
        except UserError as error:
            if not is_proven or not await self._go_back(others):
                raise
            self._refuse(error)

    async def _go_back(self, former: Sequence[Version]) -> bool:
        """Load the first of `former` that can be loaded; return whether one serves."""
        for version in former:
            try:
                host = await self._load(version, None)
            except UserError as error:
                log.error("model '%s' cannot go back: %s", self._name, error)
            else:
                await self._take(version, host)
                return True
        return False

    def _load_if_due(self) -> None:
        if self._is_due() and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._load_in_background())
            self._task.add_done_callback(_log_error)

    def _is_due(self) -> bool:
        waits = self._waits and not self._closed and time.monotonic() >= self._retry_at
        # A load that hangs is not begun again: its thread cannot be stopped.
        return waits and self._wanted not in self._overdue.values()

    async def _load_in_background(self) -> None:
        async with self._loading:
            while self._is_due():
                wanted = self._wanted
                try:
                    await self._load_wanted(self.host.predictor.task if self.host else None)
                except UserError as error:
                    if self._wanted == wanted:
                        self._refuse(error)

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
        async with self._attempt(version):
            if self._wanted != wanted or self._closed:
                return
            host = await self._load(version, task)
            if self._wanted != wanted:
                host.close()
                return
            await self._take(version, host)
            if self._wanted == wanted:
                self._waits, self.refused = False, None

    @asynccontextmanager
    async def _attempt(self, version: Version) -> AsyncIterator[None]:
        wanted = self._wanted

        def is_proven() -> bool:
            return any(good["version"] == version.model_dump() for good in self._last_good.read())

        def is_decided() -> bool:
            return self._wanted != wanted or self._closed or is_proven()

        if await asyncio.to_thread(is_proven):
            yield
        else:
            async with self._attempts.first(version, is_decided):
                yield

    async def _load(self, version: Version, task: str | None) -> Host:
        """Load a version in a thread.

        Raises:
            UserError: The version cannot be loaded, has another task than `task`, or takes longer
                than it may. A late host is closed.
        """
        wanted = self._wanted
        loading = asyncio.wrap_future(start(lambda: self._load_here(version, task)))
        until = time.monotonic() + self._load_seconds
        while not loading.done():
            await asyncio.wait([loading], timeout=POLL_SECONDS)
            if self._wanted != wanted:
                until = min(until, time.monotonic() + SUPERSEDED_SECONDS)
            if not loading.done() and time.monotonic() >= until:
                self._overdue[loading] = wanted
                loading.add_done_callback(self._close_late)
                raise UserError(
                    f"model {version.source} did not load within {self._load_seconds:.0f} s; check "
                    "that the storage of its files answers, then deploy it again"
                )
        return loading.result()

    def _load_here(self, version: Version, task: str | None) -> Host:
        try:
            host = Host.load(version, self._options, self._metrics)
        except UserError:
            raise
        except Exception as error:  # readers of broken files raise errors of any class
            log.exception("model '%s' cannot be loaded", self._name)
            reason = one_line(f"{type(error).__name__}: {error}", 240)
            raise UserError(
                f"model {version.source} cannot be loaded ({reason}); it must be a folder as "
                "save_pretrained writes it, and fit into memory"
            ) from error
        if task is not None and host.predictor.task != task:
            host.close()
            raise UserError(
                f"model {version.source} is for {host.predictor.task} and '{self._name}' answers {task}; "
                "give it another name, or set `task` in args to replace one by the other"
            )
        return host

    def _close_late(self, loading: "asyncio.Future[Host]") -> None:
        del self._overdue[loading]
        if loading.exception() is None:
            loading.result().close()

    async def _take(self, version: Version, host: Host) -> None:
        """Let a version take over from the one that serves, and record it as good."""
        good = {"version": version.model_dump(), "task": host.predictor.task}
        await asyncio.to_thread(self._last_good.write, good)
        if self._closed:
            host.close()
            return
        replaced, self.host, self._serves = self.host, host, version
        if replaced is not None:
            replaced.close()

    def _refuse(self, error: UserError) -> None:
        doublings = min(self._tries, 10)  # more would overflow a float in the end
        wait = min(RETRY_SECONDS * 2**doublings, LONGEST_RETRY_SECONDS)
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


def _log_error(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a version cannot be loaded", exc_info=error)
