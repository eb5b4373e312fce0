"""Records of an application's versions in Ray's internal key-value store.

They hold the versions that a deployment loaded last, and the attempts to load one. Serve keeps its
own state in the same store. It outlives replicas, the controller and, with Redis, the head node.
"""

import asyncio
import hashlib
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import ray
from ray import serve
from ray.experimental import internal_kv

from trainyard.errors import UserError
from trainyard.serving.options import MODEL, SHARED, Version

KEPT = 2
"""Number of versions remembered as good: the last one may be good on one node and bad on
another."""

NAMESPACE = "trainyard"
"""Namespace of the records in Ray's key-value store."""

POLL_SECONDS = 0.5
"""Seconds between two checks of another replica's attempt."""

LOAD_SECONDS = 1800.0
"""Maximum seconds to load a version; then it is refused. The storage of its files may hang."""

FIRST_LOAD_SECONDS = LOAD_SECONDS + 60
"""Maximum seconds that a replica waits for another replica's attempt, before it loads the version
too."""

MAX_CUT_OFF = 3
"""Maximum number of attempts that end their process; then the version is not tried again."""

COOL_DOWN_SECONDS = 600.0
"""Seconds from the end of an attempt that ended its process to the next attempt; doubled each
time."""

log = logging.getLogger("ray.serve.trainyard")


class CutOffError(UserError):
    """Earlier attempts at a version ended their process, so it is not tried now.

    Attributes:
        seconds: Seconds until an attempt is allowed; infinite if none is.
    """

    def __init__(self, problem: str, *, seconds: float = math.inf) -> None:
        super().__init__(problem)
        self.seconds = seconds


@dataclass(frozen=True)
class Build:
    """One run of an application's builder.

    Serve runs the builder when an application is deployed after its deletion, or with other
    arguments, or with the same arguments after a failed build. Only in the last case do its
    replicas continue to serve.

    Attributes:
        args: SHA-256 of the builder's arguments.
        run: Random id of the run.
    """

    args: str
    run: str

    @classmethod
    def of(cls, args: Any) -> Self:
        """Identify this run of a builder that has the arguments `args`."""
        text = json.dumps(args, sort_keys=True, default=str)
        return cls(hashlib.sha256(text.encode()).hexdigest(), uuid.uuid4().hex)

    def continues(self, other: Self, application: str) -> bool:
        """Return whether a record made by the build `other` still holds for this build.

        A record of other arguments does not hold, nor does a record from before the application's
        deletion.
        """
        return other == self or (other.args == self.args and _serves(application))


def _serves(application: str) -> bool:
    """Return whether replicas of an application serve, or served until they were lost."""
    status = serve.status().applications.get(application)
    if status is None:
        return False
    return status.status in ("RUNNING", "UNHEALTHY") or any(
        deployment.replica_states.get("RUNNING", 0)
        for name, deployment in status.deployments.items()
        if name in (MODEL, SHARED)
    )


class LastGood:
    """Versions of one model, or lists of shared models, that an application loaded last.

    Serve starts every replica with the wanted version. While that version is refused, a new replica
    reads here which version the other replicas serve.
    """

    def __init__(self, application: str, build: Build, name: str) -> None:
        self._application = application
        self._build = build
        self._key = f"last-good/{application}/{name}"

    def read(self) -> list[Any]:
        """Return the good versions, newest first; none when the store does not answer."""
        try:
            stored = internal_kv._internal_kv_get(self._key, namespace=NAMESPACE)
            record = json.loads(stored or b"null")
            if record is None:
                return []
            if not self._build.continues(Build(**record["build"]), self._application):
                return []
            good: list[Any] = record["good"]
        except Exception:  # the errors of the store's connection have no common base
            log.exception("%s cannot be read", self._key)
            return []
        return good

    def write(self, good: Any) -> None:
        """Store a version as the newest.

        An error of the store is only logged: the model can serve without a record.
        """
        kept = [good, *(other for other in self.read() if other != good)][:KEPT]
        try:
            record = json.dumps({"build": asdict(self._build), "good": kept})
            internal_kv._internal_kv_put(self._key, record, namespace=NAMESPACE)
        except Exception:
            log.exception("%s cannot be written", self._key)


class LoadAttempts:
    """Attempts to load a version for the first time, recorded before they begin.

    A version can end its process: out of memory, a segmentation fault, an abort of CUDA. The record
    of its attempt then stays, and the version is refused instead of ending one replica after
    another. One replica tries first; the others wait for its result.

    Another process may have caused the end, for example by using the memory. So a version is tried
    again after a cool-down, until `MAX_CUT_OFF` attempts ended their process. Wanting another
    version in between, or other `args`, clears the count.
    """

    def __init__(self, application: str, build: Build, name: str, kind: str = "attempt") -> None:
        """Identify this replica.

        Args:
            application: Name of its application in Serve.
            build: Run of the application's builder.
            name: Name of the model.
            kind: `attempt`, or `start` for loads of a proven version into a new replica.
        """
        self._application = application
        self._build = build
        self._prefix = f"{kind}/{application}:{name}:"  # no name has a colon
        context = ray.get_runtime_context()
        replica = serve.get_replica_context().replica_id
        self._owner = {"actor": replica.to_full_id_str(), "node": context.get_node_id()}
        self._held: str | None = None
        self._ended = False
        self._lock = threading.Lock()

    @asynccontextmanager
    async def first(self, version: Version, is_decided: Callable[[], bool]) -> AsyncIterator[None]:
        """Hold the only attempt at a version inside the block.

        While another replica holds it, wait. The block runs without a recorded attempt once
        `is_decided` returns True, after `FIRST_LOAD_SECONDS`, or when the store does not answer.

        Args:
            version: Version to load.
            is_decided: Returns True once there is nothing to wait for: a replica has loaded the
                version, or it is no longer wanted. Called in a thread.

        Raises:
            CutOffError: Earlier attempts ended their process. Either the cool-down is not over, or
                `MAX_CUT_OFF` attempts did so.
            UserError: Serve ends this replica.
        """
        prefix = self._prefix_of(version)
        until = time.monotonic() + FIRST_LOAD_SECONDS
        try:
            while not await asyncio.to_thread(self._claim, prefix, version.source):
                await asyncio.sleep(POLL_SECONDS)
                if await asyncio.to_thread(is_decided) or time.monotonic() > until:
                    break
        except UserError:
            raise
        except Exception:  # the store does not answer: load without a record
            log.exception("%s cannot be recorded", prefix)
        try:
            yield
        finally:
            await asyncio.to_thread(self.abandon)

    def abandon(self, *, for_good: bool = False) -> None:
        """Remove the record of this replica's attempt.

        Call this when the attempt has ended. With `for_good`, record no further one: Serve is about
        to end the replica, which is not the version's fault.
        """
        with self._lock:
            self._ended = self._ended or for_good
            key, self._held = self._held, None
        if key is not None:
            try:
                stored = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
                # Replicas of another build may have removed the record, and then used its number.
                if stored and json.loads(stored)["owner"] == self._owner:
                    internal_kv._internal_kv_del(key, namespace=NAMESPACE)
            except Exception:
                log.exception("%s cannot be removed", key)

    def forget(self, kept: Version | None = None) -> None:
        """Remove the records of ended attempts at other versions than `kept`.

        Such a version is tried again when it is wanted again. An error of the store is only logged.
        """
        try:
            for name in internal_kv._internal_kv_list(self._prefix, namespace=NAMESPACE):
                key = name.decode()
                if kept is not None and key.startswith(self._prefix_of(kept)):
                    continue
                stored = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
                if stored and not _is_alive(json.loads(stored)["owner"]["actor"]):
                    internal_kv._internal_kv_del(key, namespace=NAMESPACE)
        except Exception:
            log.exception("%s cannot be cleared", self._prefix)

    def _prefix_of(self, version: Version) -> str:
        return self._prefix + hashlib.sha256(version.model_dump_json().encode()).hexdigest() + ":"

    def _claim(self, prefix: str, source: str) -> bool:
        """Record an attempt; return False if another replica has one that is running.

        Attempts are numbered, and the store accepts each number once. So two replicas cannot both
        record one.

        Raises:
            CutOffError: Earlier attempts ended their process, see `first`.
            UserError: Serve ends this replica.
        """
        cut_off: list[float] = []
        number = 0
        for name in internal_kv._internal_kv_list(prefix, namespace=NAMESPACE):
            key = name.decode()
            number = max(number, int(key.removeprefix(prefix)) + 1)
            stored = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
            record = json.loads(stored) if stored else None
            if record is None or not self._counts(record):
                internal_kv._internal_kv_del(key, namespace=NAMESPACE)
            elif _is_alive(record["owner"]["actor"]):
                return False
            else:
                if "ended" not in record:  # first seen here; an attempt may hang before it ends
                    record["ended"] = time.time()
                    internal_kv._internal_kv_put(key, json.dumps(record), namespace=NAMESPACE)
                cut_off.append(record["ended"])
        if cut_off:
            _check_cut_off(cut_off, source)
        key = f"{prefix}{number}"
        record = {"build": asdict(self._build), "owner": self._owner}
        with self._lock:
            if self._ended:
                raise UserError(f"model {source} is not loaded: Serve ends this replica")
            exists = internal_kv._internal_kv_put(
                key, json.dumps(record), overwrite=False, namespace=NAMESPACE
            )
            if not exists:
                self._held = key
        return not exists

    def _counts(self, record: dict[str, Any]) -> bool:
        owner = record["owner"]
        ours = self._build.continues(Build(**record["build"]), self._application)
        return bool(
            ours
            and owner != self._owner
            and (
                _is_alive(owner["actor"])
                or owner["node"] in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            )
        )


def _check_cut_off(times: Sequence[float], source: str) -> None:
    cool_down = COOL_DOWN_SECONDS * 2 ** (len(times) - 1)
    wait = min(max(times) + cool_down - time.time(), cool_down)  # clocks of hosts differ
    if len(times) >= MAX_CUT_OFF:
        wait, following = math.inf, "it is not tried again"
    elif wait > 0:
        following = f"it is tried again in {math.ceil(wait / 60)} min"
    else:
        return
    raise CutOffError(
        f"model {source} ended the process of the replica that loaded it, {len(times)} of at most "
        f"{MAX_CUT_OFF} times (out of memory or a crash; see `ray logs`); {following}; deploy another "
        "version, or give the replicas more memory in `args`",
        seconds=wait,
    )


def _is_alive(actor: str) -> bool:
    try:
        ray.get_actor(actor, namespace="serve")
    except ValueError:
        return False
    return True
