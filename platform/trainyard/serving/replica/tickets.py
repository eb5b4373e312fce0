"""A request while its rows wait for forward passes, and how its caller is woken."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from trainyard.serving.errors import RequestError

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(eq=False)
class Ticket:
    """One request while it waits: its rows may run in several batches.

    Attributes:
        submitted: when its rows were there.
        missing: how many of them have no result.
    """

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[None]"
    deadline: float
    submitted: float
    results: list[Any] = field(default_factory=list)
    missing: int = 0
    started: float | None = None
    finished: float = 0.0
    failure: Exception | None = None
    gone: bool = False

    @classmethod
    def open(cls, deadline: float | None, now: float) -> Self:
        """For a caller on the running event loop, who waits until `deadline`, or for ever."""
        loop = asyncio.get_running_loop()
        latest = float("inf") if deadline is None else deadline
        return cls(loop, loop.create_future(), latest, now)

    def holding(
        self, rows: Sequence[Row], length: Callable[[Row], int], now: float
    ) -> "list[Waiting[Row]]":
        """The request's rows, which are here now."""
        self.submitted = now
        self.results, self.missing = [None] * len(rows), len(rows)
        return [Waiting(self, index, row, length(row)) for index, row in enumerate(rows)]

    def left(self, now: float) -> float | None:
        """Seconds until its deadline; None: for ever."""
        return None if self.deadline == float("inf") else self.deadline - now

    def done(self) -> "Done[Any]":
        """What its caller gets once all results are there."""
        started = self.submitted if self.started is None else self.started
        return Done(self.results, started - self.submitted, max(self.finished - started, 0.0))

    def late(self, now: float, wait: float) -> RequestError:
        """What its caller is told at its deadline; who comes now would `wait` so many seconds."""
        spent = "it waited" if self.started is None else "it took"
        return RequestError(
            "late",
            f"{spent} {now - self.submitted:.1f} s, longer than this request may; try again later, or "
            "ask for less at once", wait,
        )  # fmt: skip

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


def tell_stopped(items: "Sequence[Waiting[Any]]") -> None:
    """Fail the requests of rows that nobody will compute any more."""
    tickets = list({item.ticket for item in items})
    for ticket in tickets:
        ticket.failure = RequestError("failed", "the batcher stopped; see its replica's log")
    settle(tickets)


def _settle_all(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.settle()
