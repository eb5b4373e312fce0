"""Many requests in few calls: a hop between Serve deployments costs as much as a short forward pass."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from trainyard.serving.failures import RequestError
from trainyard.serving.gateway import Answer

Send = Callable[[Sequence[tuple[bytes, float]]], Awaitable[Sequence[Answer]]]
"""Answers of (body, end of its time on the event loop's clock), in the same order."""

CALLS = 4
BUNDLE_BYTES = 16_384


@dataclass(frozen=True, eq=False)
class _Waiting:
    body: bytes
    until: float
    answer: "asyncio.Future[Answer]"


class Bundler:
    """Sends a request at once while few calls are under way; what comes meanwhile goes together.

    No request waits for others to come. Those of one call are answered together, so only small
    ones share one: neither a long text nor a long list makes others wait. Callers who leave before
    their request is sent take it along, and a call that nobody waits for any more is cancelled.

    Args:
        send: makes one call.
        calls: how many may be under way.
        size: requests of one call, at most; their bodies hold `BUNDLE_BYTES` at most.
    """

    def __init__(self, send: Send, calls: int = CALLS, size: int = 1) -> None:
        self.calls = calls
        self.size = size
        self._send = send
        self._waiting: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, body: bytes, until: float) -> Answer:
        """The answer to one request, or what its call failed with."""
        waiting = _Waiting(body, until, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._start()
        return await waiting.answer

    def _start(self) -> None:
        while len(self._under_way) < self.calls and (bundle := self._next()):
            # Serve cancels all calls made in the context of a request whose caller left: this call
            # is everybody's.
            task = asyncio.get_running_loop().create_task(
                self._call(bundle), context=contextvars.Context()
            )
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            _cancel_with(task, bundle)

    def _next(self) -> list[_Waiting]:
        """The oldest that still wait, as many as may share a call; one at least if any waits."""
        bundle: list[_Waiting] = []
        held = 0
        while self._waiting and len(bundle) < self.size:
            waiting = self._waiting[0]
            if not waiting.answer.done():
                held += len(waiting.body)
                if bundle and held > BUNDLE_BYTES:
                    break
                bundle.append(waiting)
            self._waiting.popleft()
        return bundle

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._start()

    async def _call(self, bundle: Sequence[_Waiting]) -> None:
        failure: Exception = RequestError("unavailable", "the call was cancelled; try again", 1)
        try:
            answers = await self._send([(waiting.body, waiting.until) for waiting in bundle])
            for waiting, answer in zip(bundle, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
        except Exception as error:
            failure = error
        finally:  # whatever happened, nobody waits for a call that is over
            for waiting in bundle:
                if not waiting.answer.done():
                    waiting.answer.set_exception(failure)


def _cancel_with(task: "asyncio.Task[None]", bundle: Sequence[_Waiting]) -> None:
    """Cancel `task` once all who wait for it have left."""
    left = len(bundle)

    def one_done(answer: "asyncio.Future[Answer]") -> None:
        nonlocal left
        left -= answer.cancelled()
        if not left:
            task.cancel()

    for waiting in bundle:
        waiting.answer.add_done_callback(one_done)
