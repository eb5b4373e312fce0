"""Requests of a training worker to the bucket of its run, in a thread: no step waits for them."""

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import replace

from trainyard.errors import SupersededError
from trainyard.storage.lease import EXPIRY_SECONDS, Fence
from trainyard.storage.mirror import ASK_SECONDS, TELL_SECONDS, Mirror, Timer, outages_logged

log = logging.getLogger(__name__)


class Exchange:
    """Thread that checks the lease, looks for requests, and uploads progress.json.

    It logs an outage of the bucket, and continues. Training waits for the bucket only when the last
    confirmation of the lease is older than `EXPIRY_SECONDS`.

    A confirmation is a read, not a renewal by the driver. In an outage, another driver may take the
    lease right after it. This worker then trains for up to `EXPIRY_SECONDS` longer. It publishes
    nothing to the bucket, but trackers get the values of those steps twice.

    Args:
        mirror: The run in its bucket.
        fence: Fence of the run's driver; None without a lease.
        requests: Names of the files that ask the run to save and stop.
    """

    def __init__(self, mirror: Mirror, fence: Fence | None, requests: Collection[str]) -> None:
        self._mirror, self._fence, self._requests = mirror, fence, requests
        self._tells = Timer()
        self._confirmed = time.monotonic()
        self._lost: SupersededError | None = None
        self._ended = threading.Event()
        self.request_seen = False
        """True if the last look found a request."""
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Check that the lease is held, by the thread's last answer where that is recent.

        The mark in the scratch folder shows at once that a driver of this node has taken over.

        Raises:
            SupersededError: Another driver has taken over the run, or the scratch folder is gone.
            UserError: The lease was not confirmed for `EXPIRY_SECONDS`, and the bucket does not
                answer now.
        """
        if self._lost is not None:
            raise self._lost
        if self._fence is None:
            return
        if not self._mirror.is_of(self._fence.id):
            raise SupersededError(
                f"the scratch folder {self._mirror.path} was deleted or belongs to another driver now; "
                "this attempt ends here and writes nothing more"
            )
        if time.monotonic() - self._confirmed > EXPIRY_SECONDS:
            begun = time.monotonic()
            self._fence.check()
            self._confirmed = begun

    def close(self) -> None:
        """End the thread; waits seconds for a request that is under way."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(ASK_SECONDS):
            try:
                with outages_logged():
                    self._turn()
            except SupersededError as error:
                self._lost = error
                return
            except Exception:  # the next turn may succeed, and requests must still be seen
                log.exception("the worker's exchange with its bucket failed; it is tried again")

    def _turn(self) -> None:
        mirror, begun = self._mirror, time.monotonic()
        if self._fence is not None:
            replace(self._fence, store=mirror.brief).check()
        self._confirmed = begun
        self.request_seen = any(mirror.brief.has(mirror.key(name)) for name in self._requests)
        if self._tells.is_due(TELL_SECONDS):
            mirror.push_at_once("progress.json")
