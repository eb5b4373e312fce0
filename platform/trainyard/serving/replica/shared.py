"""Deployment of several rarely used models, which are loaded on request."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

from ray import serve

from trainyard.errors import UserError
from trainyard.inference import PREDICTORS, json_schema
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import ModelOptions, SharedOptions, SharedVersions, Version
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.model_source import locate, task_of
from trainyard.serving.replica.version_records import Build, LastGood
from trainyard.serving.replica.versioned_model import VersionedModel
from trainyard.serving.transport import ReplicaInfo

FAILED_SECONDS = 60.0
"""Seconds until a model that could not be loaded is tried again. Models load one at a time, so a
retry delays others."""

LOAD_SECONDS = 300.0
"""Maximum seconds to load a model; meanwhile no other one is loaded."""

log = logging.getLogger("ray.serve.trainyard")


class SharedReplica:
    """Replica that loads models on request and evicts the least recently used.

    Serve's multiplexing caches the models by name and sends a request to a replica that has its
    model. The name is the `multiplexed_model_id` that the gateway sends.
    """

    def __init__(self, options: Mapping[str, Any], build: Build) -> None:
        self._options = SharedOptions.parse(options, "args of shared models")
        self._application, self._build = serve.get_replica_context().app_name, build
        self._last_good = LastGood(self._application, build, "")
        self._versions: dict[str, Version] = {}
        self._refused: dict[str, Any] = {}
        self._failed: dict[str, float] = {}
        self._loaded: WeakValueDictionary[str, _LoadedModel] = WeakValueDictionary()
        self._loads: dict[str, asyncio.Task[_LoadedModel]] = {}
        self._last_begun: Callable[[], asyncio.Task[_LoadedModel] | None] = lambda: None
        self._callers = Counter[asyncio.Task[_LoadedModel]]()
        self._models: WeakSet[VersionedModel] = WeakSet()
        self._loading = asyncio.Lock()
        self._ends = False

        async def load(name: str) -> _LoadedModel:
            return await self._load(name)

        self._get = serve.multiplexed(max_num_models_per_replica=self._options.max_loaded)(load)

    async def reconfigure(self, user_config: Any) -> None:
        """Take a new list of models; new versions replace loaded ones, see `VersionedModel.want`.

        An invalid list is refused as a whole. The former list stays, or in a new replica the last
        good list of the application.

        Raises:
            UserError: The list is invalid, and there is no other.
        """
        try:
            self._versions = _parse(user_config)
        except UserError as error:
            log.error("the list of shared models stays as it is: %s", error)
            self._refused = {"refused": {"version": user_config, "error": str(error)}}
            if not self._versions:
                good = await asyncio.to_thread(self._last_good.read)
                if not good:
                    raise
                self._versions = _parse(good[0])
            return
        self._refused = {}
        self._failed.clear()
        await asyncio.to_thread(self._last_good.write, user_config)
        for name, loaded in list(self._loaded.items()):
            if name in self._versions:
                await loaded.model.want(self._versions[name])

    async def info(self) -> ReplicaInfo:
        """Return the names of the models, without an address: Serve routes calls by model."""
        return ReplicaInfo(tuple(self._versions))

    async def answer(self, name: str, body: bytes, seconds: float) -> Answer:
        """Answer a request, see `Host.answer`; load the model first if it is not loaded."""
        try:
            host = await self._host(name)
        except RequestError as error:
            return Answer.from_error(error)
        return await host.answer(body, seconds)

    async def stream(
        self, name: str, body: bytes, seconds: float
    ) -> AsyncGenerator[Answer | bytes]:
        async for event in (await self._host(name)).stream(body, seconds):
            yield event

    async def describe(self, name: str) -> dict[str, Any]:
        """Describe a model, see `VersionedModel.describe`; from its files if it is not loaded.

        Raises:
            RequestError: The kind is `not_found` for an unknown name; `unavailable` for a model
                that cannot be loaded.
        """
        version = self._check(name)
        loaded = self._loaded.get(name)
        if loaded is not None:
            about = loaded.model.describe()
        else:
            try:
                about = await asyncio.to_thread(describe_files, version, self._options)
            except Exception:  # readers of broken files raise errors of any class
                log.exception("model '%s' cannot be described", name)
                raise _cannot_load(name, FAILED_SECONDS) from None
        return about | {"shared": True} | self._refused

    async def check_health(self) -> None:
        """Check all loaded models; Serve replaces a replica that raises here.

        Serve calls this every ten seconds and waits for the result, so the checks run concurrently.
        """
        checks = (loaded.model.check_health() for loaded in list(self._loaded.values()))
        await asyncio.gather(*checks)

    async def _host(self, name: str) -> Host:
        self._check(name)
        loaded: _LoadedModel = await self._get(name)
        return loaded.host

    def _check(self, name: str) -> Version:
        version = self._versions.get(name)
        if version is None:
            raise RequestError("not_found", f"no model named '{name}' here")
        if (wait := self._failed.get(name, 0) - time.monotonic()) > 0:
            raise _cannot_load(name, wait)
        return version

    async def __del__(self) -> None:
        """Load no further version; Serve awaits this before it ends the process."""
        self._ends = True
        for model in self._models:
            model.stop_loading()

    async def _load(self, name: str) -> "_LoadedModel":
        """Load a model in a separate task, which survives the cancellation of its caller.

        Other callers wait for the same task, and the thread that loads cannot be stopped.
        """
        loading = self._loads.get(name)
        if loading is None or (loading.done() and _error_of(loading) is not None):
            loading = asyncio.get_running_loop().create_task(self._load_now(name))
            loading.add_done_callback(self._loaded_for_nobody)
            self._loads[name], self._last_begun = loading, ref(loading)
        self._callers[loading] += 1
        try:
            return await asyncio.shield(loading)
        finally:
            self._callers[loading] -= 1
            if loading.done():
                if not self._callers[loading]:
                    del self._callers[loading]
                if self._loads.get(name) is loading:
                    del self._loads[name]

    def _loaded_for_nobody(self, loading: "asyncio.Task[_LoadedModel]") -> None:
        """Keep a model that lost all its callers for the next caller, unless another load began."""
        _error_of(loading)  # retrieved, although it is awaited by no caller
        if not self._callers[loading]:
            del self._callers[loading]
            if loading is not self._last_begun():
                self._drop_finished()

    def _drop_finished(self) -> None:
        self._loads = {
            name: load
            for name, load in self._loads.items()
            if not load.done() or load in self._callers
        }

    async def _load_now(self, name: str) -> "_LoadedModel":
        model = VersionedModel(
            name, self._options, self._application, self._build, LOAD_SECONDS, self._one_load
        )
        self._models.add(model)
        if self._ends:
            model.stop_loading()
        version = self._check(name)
        while True:
            try:
                await model.want(version)
                break
            except UserError as error:
                newer = self._versions.get(name, version)
                if newer == version:
                    log.error("model '%s' cannot be loaded: %s", name, error)
                    self._failed[name] = time.monotonic() + FAILED_SECONDS
                    raise _cannot_load(name, FAILED_SECONDS) from None
                version = newer  # a new list came during the load
        if model.host is None:  # the replica ends
            raise _cannot_load(name, FAILED_SECONDS)
        loaded = self._loaded[name] = _LoadedModel(model)
        if name in self._versions:
            await model.want(self._versions[name])
        return loaded

    @asynccontextmanager
    async def _one_load(self) -> AsyncIterator[None]:
        """Let one model load at a time; first free finished loads that have no callers."""
        async with self._loading:
            self._drop_finished()
            yield


def _error_of(loading: "asyncio.Task[_LoadedModel]") -> object:
    """Return the reason that a load failed; None if it succeeded."""
    return "cancelled" if loading.cancelled() else loading.exception()


def _cannot_load(name: str, seconds: float) -> RequestError:
    return RequestError("unavailable", f"model '{name}' cannot be loaded", seconds)


def _parse(user_config: Any) -> dict[str, Version]:
    return SharedVersions.parse(user_config, "user_config of shared models").models


def describe_files(version: Version, options: ModelOptions) -> dict[str, Any]:
    """Describe a model from its files and options, without loading or downloading it.

    Raises:
        UserError: Local files are missing, unsafe or damaged, or the task is unknown.
    """
    about: dict[str, Any] = {"source": version.source, "revision": version.revision}
    about |= {"status": "not loaded", "dtype": options.dtype}
    local = version.source.startswith("package:") or Path(version.source).expanduser().exists()
    if not local:
        return about | ({"task": options.task} if options.task else {})
    folder, files = locate(version, options.max_parameters)
    task = options.task or task_of(folder)
    if task not in PREDICTORS:
        raise UserError(f"task '{task}' is not one of {', '.join(sorted(PREDICTORS))}")
    predictor = PREDICTORS[task]
    about |= files | {"task": task, "example": dict(predictor.example)}
    about["parameters"] = json_schema(predictor.parameters)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about["labels"] = predictor.label_names(config.get("id2label", {}))
    return about


class _LoadedModel:
    """Entry of Serve's cache of models; Serve calls `__del__` to evict it."""

    def __init__(self, model: VersionedModel) -> None:
        self.model = model

    @property
    def host(self) -> Host:
        assert self.model.host is not None  # set once a version is loaded
        return self.model.host

    def __del__(self) -> None:
        self.model.close()
