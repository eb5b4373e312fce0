"""Batch the rows of many requests without letting an idle model wait.

Worker threads run the forward passes. An idle worker takes the next batch at once, from the rows
that wait then. So a lone request starts at once, and batches form while the model is busy.
`batch_plan.next_batch` chooses the rows of a batch. This module uses only asyncio and numpy.

On a CPU, two passes on one core each compute more rows than one pass on two cores: no core waits
for another after each operation. A pass that runs alone gets all cores.

Text Generation Inference and Text Embeddings Inference pull batches in the same way, in order of
arrival (text-embeddings-inference, core/src/queue.rs). Here rows are chosen by length, and the
oldest row is always among them.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import numpy as np

from trainyard.batch_plan import next_batch
from trainyard.serving.errors import RequestError
from trainyard.serving.replica.failed_pass import as_request_error, out_of_memory, release_memory

Row = TypeVar("Row")
Result = TypeVar("Result")
log = logging.getLogger("ray.serve.trainyard")

SPLIT_ROWS = 8
"""Rows. Fewer rows are not divided among idle workers: small batches cost more per row."""


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batcher.

    `batch_tokens` limits the padded tokens of a pass: rows times longest row. `waiting_tokens`
    limits the unpadded tokens in the queue.
    """

    batch_tokens: int = 4096
    batch_rows: int = 128
    waiting_tokens: int = 131_072


@dataclass(frozen=True)
class BatchRecord:
    """One forward pass, for metrics. `text_tokens` / `padded_tokens` is the padding efficiency."""

    rows: int
    text_tokens: int
    padded_tokens: int
    seconds: float


@dataclass(frozen=True)
class BatchResults(Generic[Result]):
    """Results of one request in the order of its rows, and its seconds in queue and passes."""

    results: list[Result]
    queue_seconds: float
    forward_seconds: float


class CostModel:
    """Linear model of a forward pass's seconds, as a function of its padded tokens.

    It is fitted by weighted least squares. The weight of a pass halves with every `MEMORY` further
    passes, so the model follows a machine whose speed changes.
    """

    MEMORY = 50

    def __init__(self) -> None:
        self._sums = np.zeros(5)

    def observe(self, tokens: int, seconds: float) -> None:
        x, y = float(tokens), seconds
        self._sums = self._sums * 0.5 ** (1 / self.MEMORY) + (1.0, x, y, x * x, x * y)

    def line(self) -> tuple[float, float]:
        """Return (seconds of an empty pass, seconds per token), neither below zero."""
        n, x, y, xx, xy = self._sums
        if n == 0:
            return 0.0, 0.0
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 1e-9 * n * xx else 0.0
        # Passes of one size, or noise, give no positive slope: take the line through the origin.
        slope = slope if slope > 0 else y / x
        return max(0.0, (y - slope * x) / n), slope

    def overhead_tokens(self) -> float:
        """Return the fixed cost of a pass, in tokens."""
        fixed, slope = self.line()
        return fixed / slope if slope else 0.0


@dataclass(eq=False)
class PendingRequest:
    """Request whose rows may run in several batches; times are those of the batcher's clock.

    Attributes:
        deadline: Time at which the request becomes late; infinite without a limit.
        submitted: Time at which its rows entered the queue.
        missing: Number of rows without a result.
        started: Time at which its first batch was taken, or None.
        left: Time at which the request was answered, cancelled or late; its waiting rows are then
            dropped. Infinite until then.
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
    left: float = float("inf")

    @classmethod
    def open(cls, deadline: float | None, now: float) -> Self:
        loop = asyncio.get_running_loop()
        latest = float("inf") if deadline is None else deadline
        return cls(loop, loop.create_future(), latest, now)

    @property
    def gone(self) -> bool:
        return self.left < float("inf")

    def add_rows(
        self, rows: Sequence[Row], length: Callable[[Row], int], now: float
    ) -> "list[PendingRow[Row]]":
        self.submitted = now
        self.results, self.missing = [None] * len(rows), len(rows)
        return [PendingRow(self, index, row, length(row)) for index, row in enumerate(rows)]

    def seconds_left(self, now: float) -> float | None:
        return None if self.deadline == float("inf") else self.deadline - now

    def all_results(self) -> BatchResults[Any]:
        started = self.submitted if self.started is None else self.started
        return BatchResults(
            self.results, started - self.submitted, max(self.finished - started, 0.0)
        )

    def late(self, now: float, wait: float) -> RequestError:
        """Build the timeout error; `wait` is the current queueing delay, sent as Retry-After."""
        spent = "it waited" if self.started is None else "it took"
        return RequestError(
            "late",
            f"{spent} {now - self.submitted:.1f} s, longer than this request allows; try again later, or "
            "ask for less at once", wait,
        )  # fmt: skip

    def settle(self) -> None:
        """Wake the caller with the result or the failure; runs on the caller's event loop."""
        if self.future.done():
            return
        if self.failure is not None:
            self.future.set_exception(self.failure)
        else:
            self.future.set_result(None)


@dataclass(eq=False, frozen=True)
class PendingRow(Generic[Row]):
    request: PendingRequest
    index: int
    row: Row
    length: int


class Batcher(Generic[Row, Result]):
    """Queue that computes the rows of many requests in shared forward passes.

    The constructor starts `workers` daemon threads, which end after `close`.

    Args:
        forward: Padded forward pass over rows; returns one result per row, in order. Called in the
            worker threads with the number of workers that are busy or about to take waiting rows.
        length: Returns the number of tokens of a row.
        group: Returns the group of a row; only rows of one group share a pass. Default: one group.
        limits: See `BatchLimits`.
        on_batch: Callback after every forward pass, called in a worker thread; its errors are logged.
        workers: Maximum concurrent forward passes.
        own_thread: Returns True if a pass uses only its worker's thread at this number of busy
            workers. Its cost is then the thread's CPU time: waiting for a core must not change the
            batches. Default: never.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        forward: Callable[[list[Row], int], Sequence[Result]],
        length: Callable[[Row], int],
        group: Callable[[Row], str] = lambda _: "",
        limits: BatchLimits | None = None,
        on_batch: Callable[[BatchRecord], None] = lambda _: None,
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
        self._waiting: list[PendingRow[Row]] = []
        self._waiting_tokens = 0
        self._changed = threading.Condition()
        self._closed = self._broken = False
        self._workers, self._busy = workers, 0
        self._passes: dict[int, list[PendingRow[Row]]] = {}
        for _ in range(workers):
            threading.Thread(target=self._guarded_run, name="batcher", daemon=True).start()

    @property
    def broken(self) -> bool:
        return self._broken

    @property
    def waiting_rows(self) -> int:
        return len(self._waiting)

    def stuck_seconds(self) -> float:
        """Return how many seconds ago the last caller left a pass that still runs.

        It is zero if each pass has a caller. A pass ends soon after its callers have left, unless
        the device hangs.
        """
        left = [max(item.request.left for item in batch) for batch in list(self._passes.values())]
        return max(0.0, self._clock() - min(left, default=float("inf")))

    def expected_wait(self, tokens: int = 0) -> float:
        """Estimate, from past passes, the seconds until `tokens` arriving now would be computed."""
        fixed, slope = self._seconds.line()
        ahead = self._waiting_tokens + tokens
        return (ahead * slope + fixed * (1 + ahead / self._budget)) / self._workers

    async def submit(
        self, rows: Sequence[Row], deadline: float | None = None
    ) -> BatchResults[Result]:
        """Compute `rows`, which may share batches with rows of other requests.

        The waiting rows of a caller that is cancelled or late leave the queue. `deadline` is a time
        of the batcher's clock, or None for no limit.

        Raises:
            RequestError: The kind is `overloaded`, at once, when the queue is full or too long to
                meet the deadline; `late` when the deadline passes first; `failed` when the pass
                fails on one of the rows even alone, or a worker stopped; `unavailable` after
                `close`.
        """
        request = PendingRequest.open(deadline, now := self._clock())
        self._enter(request, rows, now)
        return await self._results(request, now)

    async def submit_from(
        self, pool: Executor, make: Callable[[], Sequence[Row]], deadline: float | None = None
    ) -> BatchResults[Result]:
        """Compute the rows that `make` returns, see `submit`; `make` is called in `pool`.

        The rows enter the queue in the thread of `pool`. Waking the event loop first would delay
        the forward pass of a lone request. Errors of `make` are raised too.
        """
        request = PendingRequest.open(deadline, now := self._clock())

        def enter() -> None:
            try:
                if not request.gone:
                    self._enter(request, make(), self._clock())
            except Exception as error:
                request.failure = error
                settle([request])

        pool.submit(enter)
        return await self._results(request, now)

    async def _results(self, request: PendingRequest, now: float) -> BatchResults[Result]:
        try:
            async with asyncio.timeout(request.seconds_left(now)):
                await request.future
        except TimeoutError:
            raise request.late(self._clock(), self.expected_wait()) from None
        finally:
            self._drop_rows(request)
        return request.all_results()

    def close(self) -> None:
        """Take no more requests; the workers end once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, request: PendingRequest, rows: Sequence[Row], now: float) -> None:
        arriving = request.add_rows(rows, self._length, now)
        if not rows:
            settle([request])
            return
        tokens = sum(item.length for item in arriving)
        with self._changed:
            if self._closed:
                raise RequestError(
                    "unavailable", "the model is being replaced; send the request again", 1
                )
            wait = self.expected_wait(tokens)
            # An empty queue takes a request of any size: its limits were checked before, and a
            # request refused here would be refused each time.
            if self._waiting and self._waiting_tokens + tokens > self._limits.waiting_tokens:
                raise RequestError(
                    "overloaded",
                    f"{self._waiting_tokens} tokens are queued and this request has {tokens}, the "
                    f"maximum is {self._limits.waiting_tokens}; try again later", wait,
                )  # fmt: skip
            if self._waiting and request.submitted + wait > request.deadline:
                raise RequestError(
                    "overloaded",
                    f"the answer would take about {wait:.1f} s, longer than this request allows; "
                    "try again later", wait,
                )  # fmt: skip
            self._waiting.extend(arriving)
            self._waiting_tokens += tokens
            self._changed.notify()

    def _drop_rows(self, request: PendingRequest) -> None:
        request.left = min(request.left, self._clock())
        if request.missing:
            with self._changed:
                self._keep([item for item in self._waiting if item.request is not request])

    def _keep(self, waiting: list[PendingRow[Row]]) -> None:
        self._waiting = waiting
        self._waiting_tokens = sum(item.length for item in waiting)

    def _guarded_run(self) -> None:
        try:
            self._run()
        except BaseException:
            with self._changed:
                self._closed = self._broken = True
                waiting = self._waiting
                self._keep([])
                self._changed.notify_all()
            fail_stopped(waiting)
            raise

    def _run(self) -> None:
        thread = threading.get_ident()
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                batch, late = self._take()
                self._busy += 1
                busy = min(self._workers, self._busy + -(-len(self._waiting) // SPLIT_ROWS))
                if self._waiting:
                    self._changed.notify()
            settle(late)
            if batch:
                self._passes[thread] = batch
                try:
                    self._execute(batch, busy)
                except BaseException:
                    fail_stopped(batch)
                    raise
                finally:
                    del self._passes[thread]
                del batch  # a waiting thread must not keep its last rows in memory
            with self._changed:
                self._busy -= 1

    def _take(self) -> tuple[list[PendingRow[Row]], list[PendingRequest]]:
        """Take the next batch, and the requests past their deadline; the lock must be held."""
        now = self._clock()
        late = {item.request for item in self._waiting if item.request.deadline <= now}
        for request in late:
            request.failure = request.late(now, self.expected_wait())
            request.left = now
        waiting = [item for item in self._waiting if not item.request.gone]
        batch: list[PendingRow[Row]] = []
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
            if item.request.started is None:
                item.request.started = now
        return batch, list(late)

    def _attempt(self, rows: list[Row], busy: int) -> tuple[Sequence[Result], Exception | None]:
        """Run one forward pass; return its results and None, or nothing and its error.

        The error is not raised, because code inside `except` runs while the failed pass still holds
        its memory.
        """
        try:
            return self._forward(rows, busy), None
        except Exception as error:
            return [], error

    def _split(
        self, batch: list[PendingRow[Row]], busy: int, padded: int, error: Exception
    ) -> None:
        if out_of_memory(error):
            self._budget = max(padded / 2, 1.0)
        if len(batch) == 1:
            request = batch[0].request
            request.failure, request.left = as_request_error(error, batch[0].length), self._clock()
            settle([request])
            return
        release_memory(error)
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            left = [item for item in half if not item.request.gone]
            if left:
                self._execute(left, busy)

    def _execute(self, batch: list[PendingRow[Row]], busy: int) -> None:
        """Run one forward pass; after an error, run each half, down to the row that causes it."""
        padded = len(batch) * max(item.length for item in batch)
        began, computed = self._clock(), time.thread_time()
        results, error = self._attempt([item.row for item in batch], busy)
        if error is not None:
            self._split(batch, busy, padded, error)
            return
        ended, computed = self._clock(), time.thread_time() - computed
        complete = []
        with self._changed:  # several workers may finish rows of one request
            self._seconds.observe(padded, ended - began)
            self._cost.observe(padded, computed if self._own_thread(busy) else ended - began)
            # After an out-of-memory error, grow back slowly: another process may use the memory.
            self._budget = min(self._budget * 1.02, float(self._limits.batch_tokens))
            for item, result in zip(batch, results, strict=True):
                item.request.results[item.index] = result
                item.request.missing -= 1
                if not item.request.missing:
                    item.request.finished = ended
                    complete.append(item.request)
        settle(complete)
        text = sum(item.length for item in batch)
        try:
            self._on_batch(BatchRecord(len(batch), text, padded, ended - began))
        except Exception:  # a metric must not stop the worker: the batch is computed
            log.exception("a batch of %d rows could not be reported", len(batch))


def settle(requests: Sequence[PendingRequest]) -> None:
    """Wake the callers of `requests`, with one call per event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[PendingRequest]] = {}
    for request in requests:
        loops.setdefault(request.loop, []).append(request)
    for loop, members in loops.items():
        with contextlib.suppress(RuntimeError):  # a closed loop has no callers left
            loop.call_soon_threadsafe(_settle_all, members)


def _settle_all(requests: list[PendingRequest]) -> None:
    for request in requests:
        request.settle()


def fail_stopped(items: "Sequence[PendingRow[Any]]") -> None:
    """Fail the requests of rows that a stopped batcher will not compute."""
    requests = list({item.request for item in items})
    for request in requests:
        request.failure = RequestError("failed", "the batcher stopped; see its replica's log")
    settle(requests)
