"""What a deployment loaded last, kept in the cluster, so that its new replicas find it.

Serve starts every replica with what is wanted now. While that is refused, a replica that takes the
place of a lost one has to know what the others serve. Ray's internal key-value store tells it, where
Serve keeps its own state, too: it outlives replicas, the controller and (with Redis) the head.
"""

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Self

from trainyard.serving.options import MODEL, SHARED

KEPT = 2
"""The last one may be good on one node and bad on another, which then takes the one before."""

NAMESPACE = "trainyard"

log = logging.getLogger("ray.serve.trainyard")


@dataclass(frozen=True)
class Build:
    """One run of an application's builder: what it was told, and which run of it this is.

    Serve runs it when an application is deployed anew: after it was deleted, with other `args`, and
    with the same ones when the build before failed. Only then do its replicas serve on.
    """

    args: str
    run: str

    @classmethod
    def of(cls, args: Any) -> Self:
        """A new run."""
        text = json.dumps(args, sort_keys=True, default=str)
        return cls(hashlib.sha256(text.encode()).hexdigest(), uuid.uuid4().hex)


class LastGood:
    """The record of one model, or one list of models, of an application.

    What was good under other `args`, or before the application was deleted, tells nothing.
    """

    def __init__(self, application: str, build: Build, name: str) -> None:
        self._application = application
        self._build = build
        self._key = f"last-good/{application}/{name}"

    def read(self) -> list[Any]:
        """What was good, the newest first; nothing when the store does not answer."""
        from ray.experimental.internal_kv import _internal_kv_get

        try:
            found = json.loads(_internal_kv_get(self._key, namespace=NAMESPACE) or b"null")
            if found is None or not self._is_ours(Build(**found["build"])):
                return []
            good: list[Any] = found["good"]
        except Exception:  # whatever its connection raises
            log.exception("%s cannot be read", self._key)
            return []
        return good

    def write(self, good: Any) -> None:
        """Remember it as the newest; the model serves also when the store does not answer."""
        from ray.experimental.internal_kv import _internal_kv_put

        kept = [good, *(other for other in self.read() if other != good)][:KEPT]
        try:
            record = json.dumps({"build": asdict(self._build), "good": kept})
            _internal_kv_put(self._key, record, namespace=NAMESPACE)
        except Exception:
            log.exception("%s cannot be written", self._key)

    def _is_ours(self, build: Build) -> bool:
        if build == self._build:
            return True
        return build.args == self._build.args and _goes_on(self._application)


def _goes_on(application: str) -> bool:
    """Whether replicas of an application serve, or did until they were lost.

    One that is being deployed for the first time, or again after it was deleted, has none yet.
    """
    from ray import serve

    status = serve.status().applications.get(application)
    if status is None:
        return False
    return status.status in ("RUNNING", "UNHEALTHY") or any(
        found.replica_states.get("RUNNING", 0)
        for name, found in status.deployments.items()
        if name in (MODEL, SHARED)
    )
