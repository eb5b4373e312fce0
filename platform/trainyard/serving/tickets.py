"""A request while its rows wait for forward passes, and how its caller is woken."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(eq=False)
class Ticket:
    """One request while it waits: its rows may run in several batches."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[None]"
    results: list[Any]
    deadline: float
    submitted: float
    missing: int
    started: float | None = None
    finished: float = 0.0
    failure: Exception | None = None
    gone: bool = False

    def settle(self) -> None:
        """Wake the caller; on its event loop."""
        if self.future.done():
            return
        if self.failure is not None:
            self.future.set_exception(self.failure)
        else:
            self.future.set_result(None)


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The results of one request, in the order of its rows, and where its time went."""

    results: list[Result]
    queue_seconds: float
    forward_seconds: float


@dataclass(eq=False, frozen=True)
class Waiting(Generic[Row]):
    """A row of a request."""

    ticket: Ticket
    index: int
    row: Row
    length: int


def settle(tickets: list[Ticket]) -> None:
    """Wake the callers, with one wake-up of each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        loops.setdefault(ticket.loop, []).append(ticket)
    for loop, theirs in loops.items():
        with contextlib.suppress(RuntimeError):  # a loop that is closed has no callers left
            loop.call_soon_threadsafe(_settle_all, theirs)


def _settle_all(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.settle()
