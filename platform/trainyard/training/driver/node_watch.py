"""Watch the cluster during training; restart when a node leaves or more workers fit."""

import logging
import threading
from typing import Self

from trainyard.cluster import (
    Node,
    fitting,
    greatest_count,
    nodes_for,
)
from trainyard.config import TrainConfig
from trainyard.storage import RunFolder

WATCH_SECONDS = 2.0
GROW_AFTER = 5
"""Consecutive checks that must find room for more workers before a restart with them."""

log = logging.getLogger(__name__)


class Watch:
    """Make `count` workers save and stop when a node is about to leave, or when more workers fit.

    Training then resumes from that checkpoint with the workers that fit. The batches do not depend on
    the number of workers, so neither does the result.
    """

    def __init__(self, config: TrainConfig, needed: Node, count: int, folder: RunFolder) -> None:
        self._config, self._needed, self._count, self._folder = config, needed, count, folder
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._roomy = 0
        self.reason: str | None = None

    def __enter__(self) -> Self:
        self._folder.request(self._folder.restart_request, None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._folder.request(self._folder.restart_request, None)

    def _watch(self) -> None:
        from ray.exceptions import RayError

        known: set[str] | None = None
        while self.reason is None:
            try:
                leaving = _leaving()
                if known is None:
                    known = leaving
                else:
                    self._look(leaving - known)
            except (RuntimeError, OSError, RayError) as error:
                # The control store does not answer. Whether that ends the run is for Ray to say.
                log.debug("cluster not seen: %s", error)
            if self._done.wait(WATCH_SECONDS):
                return

    def _look(self, leaving: set[str]) -> None:
        if leaving:
            self._ask("a node is about to leave")
            return
        room = self._count
        if self._count < self._config.worker_counts[-1]:
            room += fitting(nodes_for(self._config, free=True), self._needed)
        greatest = greatest_count(self._config.worker_counts, room)
        self._roomy = self._roomy + 1 if greatest > self._count else 0
        if self._roomy == GROW_AFTER:
            self._ask(f"room for {greatest} workers")

    def _ask(self, reason: str) -> None:
        self._folder.request(self._folder.restart_request, reason)
        self.reason = reason


def _leaving() -> set[str]:
    """Nodes that will leave soon and have work: idle ones are drained as a matter of course."""
    from ray._private.state import state
    from ray.util import placement_group_table

    busy = {
        node
        for group in placement_group_table().values()
        if group["state"] == "CREATED"
        for node in group["bundles_to_node_id"].values()
    }
    return busy & set(state.get_draining_nodes())
