"""Stream generated tokens; cancel generation when the client disconnects."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from trainyard.errors import UserError
from trainyard.inference import Predictor, Prepared
from trainyard.serving.errors import RequestError


@contextmanager
def cancelled_on_exit(predictor: Predictor) -> Iterator[Callable[[Prepared], None]]:
    """Stop generating for a request when the block ends: the client has its answer, left or is late.

    Yields a function to call with the request before its rows may run.
    """
    left = threading.Event()
    try:
        yield lambda prepared: predictor.stop_when(prepared, left.is_set)
    finally:
        left.set()


async def token_events(
    predictor: Predictor, prepared: Prepared, compute: Callable[[], Coroutine[Any, Any, Any]]
) -> AsyncGenerator[dict[str, Any]]:
    """Yield an event for each token of `prepared`, while `compute` has its rows in a batch.

    Raises:
        RequestError: when the task or the request cannot stream, and the errors of `compute`.
    """
    loop = asyncio.get_running_loop()
    prepare_stream = getattr(predictor, "stream", None)
    if prepare_stream is None:
        raise RequestError("invalid", f"{predictor.task} has no streamed answers")
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def emit(event: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        prepare_stream(prepared, emit)
    except UserError as error:
        raise RequestError("invalid", str(error)) from None
    with cancelled_on_exit(predictor) as mark:
        mark(prepared)
        task = loop.create_task(compute())
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await task
        finally:
            task.cancel()
