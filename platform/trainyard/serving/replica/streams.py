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
    """Cancel the generation for a request when the block ends.

    The request is then answered or late, or its client has disconnected. Yields a function to call
    with the prepared request before its rows can run.
    """
    left = threading.Event()
    try:
        yield lambda prepared: predictor.stop_when(prepared, left.is_set)
    finally:
        left.set()


async def token_events(
    predictor: Predictor, prepared: Prepared, compute: Callable[[], Coroutine[Any, Any, Any]]
) -> AsyncGenerator[dict[str, Any]]:
    """Yield an event for each generated token of `prepared` while `compute` runs its rows.

    Args:
        predictor: Predictor of the model.
        prepared: Request whose tokens are streamed.
        compute: Starts the computation of its rows; its errors are raised here.

    Raises:
        RequestError: The task or the request cannot stream (`invalid`).
    """
    loop = asyncio.get_running_loop()
    prepare_stream = getattr(predictor, "stream", None)
    if prepare_stream is None:
        raise RequestError("invalid", f"{predictor.task} does not support streaming")
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
