"""What runs inside a Serve replica of several rarely used models, loaded when they are asked for."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from weakref import WeakValueDictionary

from trainyard.errors import UserError
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import SharedOptions, SharedVersions, Version
from trainyard.serving.replica.about import glance
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.last_good import Build, LastGood
from trainyard.serving.replica.versioned_model import Swap
from trainyard.serving.transport import Offer

FAILED_SECONDS = 60.0
"""For so long a model that could not be loaded is not tried again: loads wait for each other."""

log = logging.getLogger("ray.serve.trainyard")


class SharedReplica:
    """Rarely used models; the least recently used gives way.

    Serve's multiplexing keeps them by name, and sends requests to a replica that has their model: it
    compares the names with those that the gateway asks for, see `discovery.py`.
    """

    def __init__(self, options: Mapping[str, Any], build: Build) -> None:
        from ray import serve

        self._options = SharedOptions.parse(options, "args of shared models")
        self._application, self._build = serve.get_replica_context().app_name, build
        self._last_good = self._last_good_of("")
        self._versions: dict[str, Version] = {}
        self._refused: dict[str, Any] = {}
        self._failed: dict[str, float] = {}
        self._slots: WeakValueDictionary[str, _Slot] = WeakValueDictionary()
        self._loads: dict[str, asyncio.Task[_Slot]] = {}
        self._changing = asyncio.Lock()

        async def load(name: str) -> _Slot:
            return await self._load(name)

        self._slot = serve.multiplexed(max_num_models_per_replica=self._options.max_loaded)(load)

    async def reconfigure(self, user_config: Any) -> None:
        """Take another list of models; new versions of loaded ones replace them, see `Swap.want`.

        A list that is wrong is refused as a whole, and the one before it stays.
        """
        async with self._changing:
            try:
                self._versions = _parse(user_config)
            except UserError as error:
                log.error("the list of shared models stays as it is: %s", error)
                self._refused = {"refused": {"version": user_config, "error": str(error)}}
                if not self._versions:
                    known = await asyncio.to_thread(self._last_good.read)
                    if not known:
                        raise
                    self._versions = _parse(known[0])
                return
            self._refused = {}
            self._failed.clear()
            await asyncio.to_thread(self._last_good.write, user_config)
            for name, slot in list(self._slots.items()):
                if name in self._versions:
                    await slot.swap.want(self._versions[name])

    async def offer(self) -> Offer:
        """What can be asked here. By no line: Serve routes calls by their model."""
        return Offer(tuple(self._versions))

    async def answer(self, name: str, body: bytes, seconds: float) -> Answer:
        """See `Host.answer`; loads the model first when need be."""
        try:
            host = await self._host(name)
        except RequestError as error:
            return Answer.to(error)
        return await host.answer(body, seconds)

    async def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        """See `Host.stream`."""
        async for event in (await self._host(name)).stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """See `Swap.describe`. A model that is not loaded stays so; its files tell what they can."""
        version = self._check(name)
        slot = self._slots.get(name)
        if slot is not None:
            about = slot.swap.describe()
        else:
            try:
                about = await asyncio.to_thread(glance, version, self._options)
            except Exception:  # whatever broken files make their readers raise
                log.exception("model '%s' cannot be described", name)
                raise _cannot_load(name, FAILED_SECONDS) from None
        return about | {"shared": True} | self._refused

    async def check_health(self) -> None:
        """Asked by Serve every ten seconds, which replaces a replica that raises here."""
        for slot in list(self._slots.values()):
            slot.swap.check_health()

    async def _host(self, name: str) -> Host:
        self._check(name)
        slot: _Slot = await self._slot(name)
        return slot.host

    def _last_good_of(self, name: str) -> LastGood:
        return LastGood(self._application, self._build, name)

    def _check(self, name: str) -> Version:
        """The version of a model that can be asked, as far as is known."""
        version = self._versions.get(name)
        if version is None:
            raise RequestError("not_found", "there is no such model here")
        if (wait := self._failed.get(name, 0) - time.monotonic()) > 0:
            raise _cannot_load(name, wait)
        return version

    async def _load(self, name: str) -> "_Slot":
        """Called for one model after the other; what a caller left behind is there for the next one.

        In a task of its own: a caller who leaves would break off what others wait for, and lose the
        model that a thread goes on to load.
        """
        if name not in self._loads:
            self._loads[name] = asyncio.get_running_loop().create_task(self._load_now(name))
        loading = self._loads[name]
        try:
            return await asyncio.shield(loading)
        finally:
            if loading.done():
                self._loads.pop(name, None)

    async def _load_now(self, name: str) -> "_Slot":
        async with self._changing:
            # Those for which nobody came again give way.
            self._loads = {n: load for n, load in self._loads.items() if not load.done()}
            version = self._check(name)  # again: others may have tried while this one waited
            swap = Swap(name, self._options, self._last_good_of(name))
            try:
                await swap.want(version)
            except UserError as error:
                log.error("model '%s' cannot be loaded: %s", name, error)
                self._failed[name] = time.monotonic() + FAILED_SECONDS
                raise _cannot_load(name, FAILED_SECONDS) from None
            slot = self._slots[name] = _Slot(swap)
            return slot


def _cannot_load(name: str, seconds: float) -> RequestError:
    return RequestError("unavailable", f"model '{name}' cannot be loaded", seconds)


def _parse(user_config: Any) -> dict[str, Version]:
    return SharedVersions.parse(user_config, "user_config of shared models").models


class _Slot:
    """A loaded model in Serve's cache, which says that it drops one by calling `__del__`."""

    def __init__(self, swap: Swap) -> None:
        self.swap = swap

    @property
    def host(self) -> Host:
        """What answers; a slot is made once there is something."""
        assert self.swap.host is not None
        return self.swap.host

    def __del__(self) -> None:
        self.swap.close()
