"""Many requests in few calls: a hop between Serve deployments costs as much as a short forward pass."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from trainyard.serving.gateway import Answer

Send = Callable[[Sequence[tuple[bytes, float]]], Awaitable[Sequence[Answer]]]
"""Answers of (body, end of its time on the event loop's clock), in the same order."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    body: bytes
    until: float
    answer: "asyncio.Future[Answer]"


class Bundler:
    """Sends a request at once while few calls are under way; what comes meanwhile goes together.

    No request waits for others to come. One that is sent in a bundle is answered with it; callers
    who leave before it is sent take their request along, and a call that nobody waits for any
    more is cancelled.

    Args:
        send: makes one call.
        calls: how many may be under way.
        size: requests of one call, at most.
    """

    def __init__(self, send: Send, calls: int, size: int) -> None:
        self._send = send
        self._calls = calls
        self._size = size
        self._waiting: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, body: bytes, until: float) -> Answer:
        """The answer to one request, or what its call failed with."""
        waiting = _Waiting(body, until, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._start()
        return await waiting.answer

    def _start(self) -> None:
        while self._waiting and len(self._under_way) < self._calls:
            bundle: list[_Waiting] = []
            while self._waiting and len(bundle) < self._size:
                waiting = self._waiting.popleft()
                if not waiting.answer.done():
                    bundle.append(waiting)
            if not bundle:
                return
            task = asyncio.get_running_loop().create_task(self._call(bundle))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            for waiting in bundle:
                waiting.answer.add_done_callback(
                    lambda _, bundle=bundle, task=task: (  # type: ignore[misc]
                        task.cancel() if all(item.answer.cancelled() for item in bundle) else None
                    )
                )

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._start()

    async def _call(self, bundle: Sequence[_Waiting]) -> None:
        try:
            answers = await self._send([(waiting.body, waiting.until) for waiting in bundle])
        except Exception as error:
            for waiting in bundle:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(bundle, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
