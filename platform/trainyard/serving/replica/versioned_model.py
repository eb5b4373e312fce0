"""The version of a model that serves: the next one is loaded beside it, takes over, or is refused."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from trainyard.errors import UserError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.last_good import LastGood
from trainyard.serving.replica.metrics import RayWatch
from trainyard.serving.replica.threads import run_and_end

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 30.0, 900.0
"""From a refusal to the next try of the same version, doubled each time: a copy may be on its way, a
device may have been full. A broken one costs its loading every quarter of an hour."""

log = logging.getLogger("ray.serve.trainyard")


class Swap:
    """One model in one replica. `want` a version, ask `host`, `close` it in the end.

    Attributes:
        host: what answers; None until a version is loaded.
        refused: the version that is wanted and could not be loaded, why, and how often it was tried.
    """

    def __init__(self, name: str, options: ModelOptions, last_good: LastGood) -> None:
        self.host: Host | None = None
        self.refused: dict[str, Any] | None = None
        self._name = name
        self._options = options
        self._last_good = last_good
        self._watch = RayWatch(name)
        self._wanted: Any = None
        self._tries = 0
        self._retry_at = 0.0
        self._loading = asyncio.Lock()  # of two versions in a row the second stays
        self._closed = False

    async def want(self, version: Any) -> None:
        """Load a version in a thread, warm it, then let it take over between two requests.

        While another serves, or is known to have served, one that cannot be loaded is refused: Serve
        would stop the replica for an exception, and with it the version that works.

        Raises:
            UserError: when it cannot be loaded and there is no other.
        """
        async with self._loading:
            if self.host is not None and version == self._wanted:
                return  # Serve repeats itself when replicas are numbered anew
            self._wanted, self._tries = version, 0
            await self._try()

    def check_health(self) -> None:
        """Asked now and then; also tries a refused version again, in the background, when it is time.

        Raises:
            RuntimeError: when the model that serves can never answer again.
        """
        if self.host is not None and not self.host.healthy:
            raise RuntimeError(f"the batcher of model '{self._name}' stopped")
        if self._due() and not self._loading.locked():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    def _due(self) -> bool:
        waits = self.refused is not None and not self._closed
        return waits and time.monotonic() >= self._retry_at

    async def _retry(self) -> None:
        async with self._loading:
            if self._due():  # else another version was wanted meanwhile
                await self._try()

    def describe(self) -> dict[str, Any]:
        """See `Host.describe`; with what was refused, if it was."""
        about = self.host.describe() if self.host else {}
        return about | ({"refused": self.refused} if self.refused else {})

    def close(self) -> None:
        """Let the model go, also one that is being loaded."""
        self._closed = True
        if self.host is not None:
            self.host.close()

    async def _try(self) -> None:
        good = await asyncio.to_thread(self._last_good.read) if self.host is None else []
        task = self.host.predictor.task if self.host else next((g["task"] for g in good), None)
        version = None
        try:
            version = Version.parse(self._wanted, f"user_config of model '{self._name}'")
            host = await asyncio.to_thread(self._load, version, task)
        except UserError as error:
            before = [Version(**g["version"]) for g in good]
            host = await self._instead([other for other in before if other != version], error)
            self._refuse(error)
        else:
            self.refused = None
        if self._closed:
            host.close()
        elif host is not self.host:
            before_it, self.host = self.host, host
            if before_it is not None:
                before_it.close()

    async def _instead(self, known: Sequence[Version], error: UserError) -> Host:
        """What serves while the wanted version does not.

        Raises:
            UserError: the one that is given, when there is nothing.
        """
        if self.host is not None:
            return self.host
        for version in known:
            try:
                return await asyncio.to_thread(self._load, version, None)
            except UserError as another:
                log.error("model '%s' cannot go back: %s", self._name, another)
        raise error

    def _refuse(self, error: UserError) -> None:
        wait = min(RETRY_SECONDS * 2**self._tries, LONGEST_RETRY_SECONDS)
        self._tries, self._retry_at = self._tries + 1, time.monotonic() + wait
        wanted = self._wanted.model_dump() if isinstance(self._wanted, Version) else self._wanted
        self.refused = {"version": wanted, "error": str(error), "tries": self._tries}
        log.error("model '%s' keeps its version, next try in %.0f s: %s", self._name, wait, error)

    def _load(self, version: Version, task: str | None) -> Host:
        try:
            host = run_and_end(lambda: Host.load(version, self._options, self._watch))
        except UserError:
            raise
        except Exception as error:  # whatever broken files make their readers raise, or full memory
            log.exception("model '%s' cannot be loaded", self._name)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:240]
            raise UserError(
                f"model {version.source} cannot be loaded ({reason}); it must be a folder as "
                "save_pretrained writes it, and fit into memory"
            ) from error
        if task is not None and host.predictor.task != task:
            host.close()
            raise UserError(
                f"model {version.source} is for {host.predictor.task} and '{self._name}' answers {task}; "
                "give it a name of its own, or set `task` in args to replace one by the other"
            )
        self._last_good.write({"version": version.model_dump(), "task": host.predictor.task})
        return host
