"""What a deployment loaded last, kept in the cluster, so that its new replicas find it.

Serve starts every replica with what is wanted now. While that is refused, a replica that takes the
place of a lost one has to know what the others serve. Ray's internal key-value store tells it, where
Serve keeps its own state, too: it outlives replicas, the controller and (with Redis) the head.
"""

import json
import logging
from typing import Any

KEPT = 2
"""The last one may be good on one node and bad on another, which then takes the one before."""

NAMESPACE = "trainyard"

log = logging.getLogger("ray.serve.trainyard")


class LastGood:
    """The record of one model, or one list of models, as one build of its application wants it.

    An application is built when it is deployed anew, after it was deleted or with other `args`. What
    was good before then tells nothing, so the build's id is part of the key.
    """

    def __init__(self, build: str, name: str) -> None:
        self._key = f"last-good/{build}/{name}"

    def read(self) -> list[Any]:
        """What was good, the newest first; nothing when the store does not answer."""
        from ray.experimental.internal_kv import _internal_kv_get

        try:
            found: list[Any] = json.loads(_internal_kv_get(self._key, namespace=NAMESPACE) or b"[]")
        except Exception:  # whatever its connection raises
            log.exception("%s cannot be read", self._key)
            return []
        return found

    def write(self, good: Any) -> None:
        """Remember it as the newest; the model serves also when the store does not answer."""
        from ray.experimental.internal_kv import _internal_kv_put

        kept = [good, *(other for other in self.read() if other != good)][:KEPT]
        try:
            _internal_kv_put(self._key, json.dumps(kept), namespace=NAMESPACE)
        except Exception:
            log.exception("%s cannot be written", self._key)
