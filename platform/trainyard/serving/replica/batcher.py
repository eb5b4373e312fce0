"""From many requests at once to padded batches, without ever letting a free model wait.

Threads of its own run the forward passes, each taking the next batch the moment it is free, from
whatever waits then: a lone request starts at once, and under load batches form by themselves while
the model is busy. Which rows go together is `batching.next_batch`. Pure asyncio and numpy.

On a CPU two passes beside each other, of one core each, do more than one pass over two cores: no
core waits for another after each operation. A pass that is alone gets all cores.

Text Generation Inference and Text Embeddings Inference pull batches in the same way
(text-embeddings-inference, core/src/queue.rs), first come first served; here rows go by length, the
oldest always among them.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

import numpy as np

from trainyard.batching import next_batch
from trainyard.serving.errors import RequestError
from trainyard.serving.replica.cost import (
    BatchLimits,
    BatchRecord,
    CostModel,
    as_failure,
    let_go,
    out_of_memory,
)
from trainyard.serving.replica.tickets import Done, Ticket, Waiting, settle, tell_stopped

Row = TypeVar("Row")
Result = TypeVar("Result")

SPLIT_ROWS = 8
"""Fewer rows than this are not divided among free workers: small batches cost more per row."""


class Batcher(Generic[Row, Result]):
    """Runs `forward` over rows of many requests.

    Args:
        forward: a padded forward pass; results in the order of the rows. Called in the workers'
            threads, with the number of workers that are busy then.
        length: tokens of a row.
        group: only rows of equal groups may share a pass. Default: all rows may.
        limits: see `BatchLimits`.
        on_batch: told of every forward pass, in a worker's thread.
        workers: forward passes at once.
        own_thread: whether a pass beside so many others (itself counted) computes in its worker's
            thread alone. Its cost then is that thread's processor time: how long it also waited for
            a core says nothing of which rows should go together. Default: none does.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        forward: Callable[[list[Row], int], Sequence[Result]],
        length: Callable[[Row], int],
        group: Callable[[Row], str] = lambda _: "",
        limits: BatchLimits | None = None,
        on_batch: Callable[[BatchRecord], None] | None = None,
        workers: int = 1,
        own_thread: Callable[[int], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward, self._length, self._group = forward, length, group
        self._limits = limits or BatchLimits()
        self._on_batch = on_batch
        self._clock = clock
        self._budget = float(self._limits.batch_tokens)
        self._own_thread = own_thread
        self._seconds, self._cost = CostModel(), CostModel()
        self._waiting: list[Waiting[Row]] = []
        self._waiting_tokens = 0
        self._changed = threading.Condition()
        self._closed = self._broken = False
        self._workers, self._busy = workers, 0
        for _ in range(workers):
            threading.Thread(target=self._guarded_run, name="batcher", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether a worker died: a defect, after which only a new batcher helps."""
        return self._broken

    @property
    def waiting_rows(self) -> int:
        """Rows that no forward pass has taken yet."""
        return len(self._waiting)

    def expected_wait(self, tokens: int = 0) -> float:
        """Seconds until `tokens` that came now would be done, as far as past passes tell."""
        fixed, slope = self._seconds.line()
        ahead = self._waiting_tokens + tokens
        return (ahead * slope + fixed * (1 + ahead / self._budget)) / self._workers

    async def submit(self, rows: Sequence[Row], deadline: float | None = None) -> Done[Result]:
        """The results of `rows`, which may share batches with anybody's.

        A caller that is cancelled, or told that it is late, takes its waiting rows with it. `deadline`
        is on the batcher's clock.

        Raises:
            RequestError: `overloaded`, at once, when too much waits already, or for too long to
                meet the deadline; `late` when the deadline passes before all are done;
                `failed` when the forward pass fails on one of these rows, even alone.
        """
        ticket = Ticket.open(deadline, now := self._clock())
        self._enter(ticket, rows, now)
        return await self._done(ticket, now)

    async def submit_from(
        self, pool: Executor, make: Callable[[], Sequence[Row]], deadline: float | None = None
    ) -> Done[Result]:
        """`submit` of the rows that `make` returns, called in `pool`.

        They enter from there: the event loop is not woken in between, which would take a lone request
        as long as entering does, and hold up its forward pass.

        Raises:
            Exception: what `make` raises, and what `submit` does.
        """
        ticket = Ticket.open(deadline, now := self._clock())

        def enter() -> None:
            try:
                if not ticket.gone:
                    self._enter(ticket, make(), self._clock())
            except Exception as error:
                ticket.failure = error
                settle([ticket])

        pool.submit(enter)
        return await self._done(ticket, now)

    async def _done(self, ticket: Ticket, now: float) -> Done[Result]:
        try:
            async with asyncio.timeout(ticket.left(now)):
                await ticket.future
        except TimeoutError:
            raise ticket.late(self._clock(), self.expected_wait()) from None
        finally:
            self._leave(ticket)
        return ticket.done()

    def close(self) -> None:
        """Take nothing more; the workers end once all that waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, ticket: Ticket, rows: Sequence[Row], now: float) -> None:
        arriving = ticket.holding(rows, self._length, now)
        if not rows:
            settle([ticket])
            return
        tokens = sum(item.length for item in arriving)
        with self._changed:
            if self._closed:
                raise RequestError(
                    "unavailable", "the model is being replaced; send the request again", 1
                )
            wait = self.expected_wait(tokens)
            # However large, a request is let in when nothing else waits: limits of one request
            # are checked before, and refusing it would never let it through.
            if self._waiting and self._waiting_tokens + tokens > self._limits.waiting_tokens:
                raise RequestError(
                    "overloaded",
                    f"{self._waiting_tokens} tokens wait already, at most "
                    f"{self._limits.waiting_tokens} may; try again later", wait,
                )  # fmt: skip
            if self._waiting and ticket.submitted + wait > ticket.deadline:
                raise RequestError(
                    "overloaded",
                    f"the answer would take about {wait:.1f} s, longer than this request may wait; "
                    "try again later", wait,
                )  # fmt: skip
            self._waiting.extend(arriving)
            self._waiting_tokens += tokens
            self._changed.notify()

    def _leave(self, ticket: Ticket) -> None:
        """Forget what still waits of a request whose caller was told, or left."""
        ticket.gone = True
        if ticket.missing:
            with self._changed:
                self._keep([item for item in self._waiting if item.ticket is not ticket])

    def _keep(self, waiting: list[Waiting[Row]]) -> None:
        self._waiting = waiting
        self._waiting_tokens = sum(item.length for item in waiting)

    def _guarded_run(self) -> None:
        """`_run`; were it ever to fail, nobody may wait for ever for a thread that is gone."""
        try:
            self._run()
        except BaseException:
            with self._changed:
                self._closed = self._broken = True
                waiting = self._waiting
                self._keep([])
                self._changed.notify_all()
            tell_stopped(waiting)
            raise

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                batch, settled = self._take()
                self._busy += 1
                busy = min(self._workers, self._busy + -(-len(self._waiting) // SPLIT_ROWS))
                if self._waiting:
                    self._changed.notify()
            settle(settled)
            if batch:
                try:
                    self._execute(batch, busy)
                except BaseException:
                    tell_stopped(batch)
                    raise
                del batch  # a waiting thread must not keep the last rows alive
            with self._changed:
                self._busy -= 1

    def _take(self) -> tuple[list[Waiting[Row]], list[Ticket]]:
        """The next batch, and the tickets that ran out of time; called with the lock held."""
        now = self._clock()
        late = {item.ticket for item in self._waiting if item.ticket.deadline <= now}
        for ticket in late:
            ticket.failure = ticket.late(now, self.expected_wait())
            ticket.gone = True
        waiting = [item for item in self._waiting if not item.ticket.gone]
        batch: list[Waiting[Row]] = []
        if waiting:
            group = self._group(waiting[0].row)
            able = [i for i, item in enumerate(waiting) if self._group(item.row) == group]
            share = max(SPLIT_ROWS, -(-len(able) // (self._workers - self._busy)))
            chosen = next_batch(
                np.fromiter((waiting[i].length for i in able), np.int32, len(able)),
                int(self._budget), self._cost.overhead_tokens(),
                min(self._limits.batch_rows, share),
            )  # fmt: skip
            batch = [waiting[able[i]] for i in chosen]
            taken = {able[i] for i in chosen}
            waiting = [item for i, item in enumerate(waiting) if i not in taken]
        self._keep(waiting)
        for item in batch:
            if item.ticket.started is None:
                item.ticket.started = now
        return batch, list(late)

    def _attempt(self, rows: list[Row], busy: int) -> tuple[Sequence[Result], Exception | None]:
        """One forward pass: its results or its failure.

        The failure is given back, as whatever runs inside `except` runs beside what it left.
        """
        try:
            return self._forward(rows, busy), None
        except Exception as error:
            return [], error

    def _split(self, batch: list[Waiting[Row]], busy: int, padded: int, error: Exception) -> None:
        if out_of_memory(error):
            self._budget = max(padded / 2, 1.0)
        if len(batch) == 1:
            ticket = batch[0].ticket
            ticket.failure, ticket.gone = as_failure(error, batch[0].length), True
            settle([ticket])
            return
        let_go(error)
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            left = [item for item in half if not item.ticket.gone]
            if left:
                self._execute(left, busy)

    def _execute(self, batch: list[Waiting[Row]], busy: int) -> None:
        """One forward pass; when it fails, each half again, down to the row that it is."""
        padded = len(batch) * max(item.length for item in batch)
        began, computed = self._clock(), time.thread_time()
        results, error = self._attempt([item.row for item in batch], busy)
        if error is not None:
            self._split(batch, busy, padded, error)
            return
        ended, computed = self._clock(), time.thread_time() - computed
        complete = []
        with self._changed:  # rows of one request may end in several workers
            self._seconds.observe(padded, ended - began)
            self._cost.observe(padded, computed if self._own_thread(busy) else ended - began)
            # A budget cut by memory that ran out grows back slowly: it may have been a neighbor's.
            self._budget = min(self._budget * 1.02, float(self._limits.batch_tokens))
            for item, result in zip(batch, results, strict=True):
                item.ticket.results[item.index] = result
                item.ticket.missing -= 1
                if not item.ticket.missing:
                    item.ticket.finished = ended
                    complete.append(item.ticket)
        settle(complete)
        if self._on_batch is not None:
            text = sum(item.length for item in batch)
            self._on_batch(BatchRecord(len(batch), text, padded, ended - began))
