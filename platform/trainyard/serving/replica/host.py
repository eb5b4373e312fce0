"""One version of one model, loaded and warm: turns a request's bytes into the bytes of its answer.

The event loop stays free for further requests. Parsing and tokenizing, forward passes, and large
answers have separate threads. Forward passes run in the batcher's workers, or in the wide thread of
`threads.py`.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Self

from trainyard.cluster import owns_gpu
from trainyard.errors import UserError, one_line
from trainyard.inference import PREDICTORS, Limits, Predictor, Prepared, Row, json_schema
from trainyard.models import ENGINES, choose
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.batcher import Batcher, BatchLimits, BatchRecord
from trainyard.serving.replica.codec import dump, prepare, read
from trainyard.serving.replica.metrics import ReplicaMetrics
from trainyard.serving.replica.model_source import check_memory, locate, task_of
from trainyard.serving.replica.streams import cancelled_on_exit, token_events
from trainyard.serving.replica.threads import process_threads, run_pass
from trainyard.serving.replica.turns import memory_turn

log = logging.getLogger("ray.serve.trainyard")

BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Device -> default of `batch_tokens`. Larger batches do not make rows cheaper."""

SMALL_BODY = 16_384
"""Bytes. Larger bodies are tokenized in another thread, so that short texts do not wait for
them."""

WARM_UP_PASSES = 3
"""Number of times that the example is run before a version serves."""

ANSWER_NUMBERS = 8_000_000
"""Maximum numbers in an answer that has vectors: 160 MB of JSON, and several times this memory to
encode it."""

SMALL_ANSWER = 512
"""Numbers. Results up to this size are encoded on the event loop, which takes about as long as
waking a thread. Larger results, and results that are not arrays, are encoded in a thread, since
they would delay all requests."""

FAULT_SECONDS = 20.0
"""Maximum seconds to answer the example in a health check; Serve's own timeout is 30 s."""

STUCK_SECONDS, STUCK_FACTOR = 120.0, 4.0
"""A forward pass whose last caller left is stuck after `STUCK_SECONDS`. The limit grows to
`STUCK_FACTOR` times the longest pass that the warm-up's time per token predicts. A small pass costs
most per token, so only a device that hangs takes longer."""


class Host:
    """Answer requests with one predictor.

    Create it with `load`, and `close` it when another version has taken over.
    """

    def __init__(
        self,
        predictor: Predictor,
        options: ModelOptions,
        about: Mapping[str, Any],
        metrics: ReplicaMetrics,
    ) -> None:
        self.predictor = predictor
        predictor.limits = Limits(
            options.max_rows, options.waiting_tokens, options.max_new_tokens, ANSWER_NUMBERS
        )
        self.about = dict(about)
        self._options = options
        self._metrics = metrics
        self._in_flight = 0
        self._failed = False
        self._closed = False
        self._stuck_seconds = STUCK_SECONDS
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._large_tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize-large")
        self._finisher = ThreadPoolExecutor(2, thread_name_prefix="answer")
        self._cores = options.threads or process_threads()
        device = predictor.device.type
        engine = ENGINES[about.get("engine", "torch")]
        passes = engine.passes or self._cores
        in_torch = device == "cpu" and engine.keeps_model
        # Generation runs one pass at a time: concurrent passes would compete for the cores.
        alone = device != "cpu" or predictor.model.can_generate()
        self.limits = BatchLimits(
            batch_tokens=options.batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]),
            batch_rows=options.batch_rows,
            waiting_tokens=options.waiting_tokens,
        )
        if predictor.max_tokens is None:  # else one text could make a pass of any size
            predictor.max_tokens = self.limits.batch_tokens
        self._batcher = Batcher(
            self._forward,
            lambda row: row.length,
            lambda row: row.group,
            self.limits,
            self._on_batch,
            workers=1 if alone else min(passes, self._cores),
            own_thread=lambda busy: in_torch and self._cores // busy <= 1,
        )

    @classmethod
    def load(
        cls,
        version: Version,
        options: ModelOptions,
        metrics: ReplicaMetrics,
        is_needed: Callable[[], bool] = lambda: True,
    ) -> Self:
        """Load and warm up a version. A large model takes minutes, so call this in a thread.

        Args:
            version: Version to load.
            options: Options of its application.
            metrics: Metrics of the replica.
            is_needed: Returns False once the model is no longer wanted.

        Raises:
            UserError: The model is missing, unsafe, damaged, too large, of an unknown task, or
                fails on the example of its task.
            NotNeededError: The model is no longer wanted, and its load has not begun.
        """
        import torch

        began = time.perf_counter()
        torch.set_num_threads(options.threads or process_threads())
        on_gpu = torch.cuda.is_available() and owns_gpu()
        device = options.device or ("cuda" if on_gpu else "cpu")
        folder, about = locate(version, options.max_parameters)
        task = options.task or task_of(folder)
        if task not in PREDICTORS:
            raise UserError(f"task '{task}' is not one of {', '.join(sorted(PREDICTORS))}")
        choice = choose(options.engine, options.dtype, folder, device)
        # Replicas number their own devices only.
        where = "cpu" if device == "cpu" else str(torch.cuda.get_device_properties(device).uuid)
        with memory_turn(where, is_needed):
            check_memory(folder, options.dtype, device, version.source)
            predictor = PREDICTORS[task].load(str(folder), device=device, **choice.how())
        about |= {"task": task, "device": device, **choice.about()}
        if predictor.padding.note is not None:
            about["padding_note"] = predictor.padding.note
        about["parameters"] = json_schema(predictor.parameters)
        host = cls(predictor, options, about, metrics)
        host.warm_up()
        host.about["load_seconds"] = round(time.perf_counter() - began, 2)
        return host

    @property
    def uses_connections(self) -> bool:
        """True if requests may bypass Serve, on connections from the gateway.

        A call through Serve takes about as long as a short forward pass. Generation takes much
        longer, so it uses Serve.
        """
        return not self.predictor.model.can_generate()

    async def find_fault(self) -> str | None:
        """Return the reason why the model cannot answer, or None.

        After a failed request, the task's example is computed. It succeeds if the input was bad,
        and fails if the device is broken. A pass that does not end indicates a device that hangs.
        """
        if self._batcher.broken:
            return "its batcher stopped"
        if self._batcher.stuck_seconds() > self._stuck_seconds:
            return "a forward pass does not end"
        if not self._failed:
            return None
        self._failed = False
        answer = await self.answer(json.dumps(self.predictor.example).encode(), FAULT_SECONDS)
        return "it fails on the example of its task" if answer.status == 500 else None

    def warm_up(self) -> None:
        """Run the task's example from JSON to answer, so that the first request is fast.

        Raises:
            UserError: The model fails on the example; the host is then closed.
        """
        example = json.dumps(self.predictor.example).encode()
        try:
            for _ in range(WARM_UP_PASSES):
                prepared = self._prepare(read(example, self._options.max_items))
                began = time.perf_counter()
                results = self.predictor.forward_all(prepared.rows)
                seconds = time.perf_counter() - began
                dump(self.predictor.postprocess(prepared, results))
        except BaseException as error:  # tokenizers raises panics that are not an Exception
            self.close()  # else its threads would keep the model
            raise UserError(
                f"the model of {self.about['source']} fails on the example of its task "
                f"({one_line(error, 200)}); is it really a model for "
                f"{self.predictor.task}?"
            ) from error
        per_token = seconds / max(1, sum(row.length for row in prepared.rows))
        longest = per_token * max(self.limits.batch_tokens, self.predictor.max_tokens or 0)
        self._stuck_seconds = max(STUCK_SECONDS, STUCK_FACTOR * longest)

    async def answer(self, body: bytes, seconds: float) -> Answer:
        """Answer a request's body within `seconds`; an error becomes an `Answer` too."""
        return await self._answer(
            lambda: read(body, self._options.max_items), self._pool(body), seconds
        )

    async def _answer(
        self, parse: Callable[[], dict[str, Any]], pool: ThreadPoolExecutor, seconds: float
    ) -> Answer:
        began = time.monotonic()
        self._in_flight += 1
        try:
            answer = await self._compute(parse, pool, began, began + seconds)
        except RequestError as error:
            self._refused(error)
            return Answer.from_error(error)
        except Exception:  # a bug of the server
            log.exception("request failed")
            self._failed = True
            return Answer.from_error(
                RequestError("failed", "the server failed on this request; see its log")
            )
        finally:
            self._in_flight -= 1
            self._close_if_idle()
        self._metrics.answered(time.monotonic() - began)
        return answer

    async def _compute(
        self,
        parse: Callable[[], dict[str, Any]],
        pool: ThreadPoolExecutor,
        began: float,
        deadline: float,
    ) -> Answer:
        made: list[tuple[Prepared, float]] = []

        def make() -> Sequence[Row]:
            prepared = self._prepare(parse())
            mark(prepared)
            made.append((prepared, time.monotonic()))
            self._metrics.waiting(self._batcher.waiting_rows + len(prepared.rows))
            return prepared.rows

        with cancelled_on_exit(self.predictor) as mark:
            done = await self._batcher.submit_from(pool, make, deadline)
        ((prepared, tokenized),) = made
        result = await self._finish(prepared, done.results)
        self._metrics.timed(tokenized - began, done.queue_seconds, done.forward_seconds)
        headers = {
            "server-timing": f"tokenize;dur={1000 * (tokenized - began):.1f}, "
            f"queue;dur={1000 * done.queue_seconds:.1f}, "
            f"forward;dur={1000 * done.forward_seconds:.1f}"
        }
        if any(prepared.truncated):
            headers["x-truncated-tokens"] = ",".join(map(str, prepared.truncated))
        return Answer(200, result, headers)

    async def _finish(self, prepared: Prepared, results: Sequence[Any]) -> bytes:
        def finish() -> bytes:
            return dump(self.predictor.postprocess(prepared, results))

        if sum(getattr(result, "size", SMALL_ANSWER + 1) for result in results) <= SMALL_ANSWER:
            return finish()
        return await asyncio.get_running_loop().run_in_executor(self._finisher, finish)

    def _pool(self, body: bytes) -> ThreadPoolExecutor:
        return self._tokenizer if len(body) <= SMALL_BODY else self._large_tokenizer

    def _refused(self, error: RequestError) -> None:
        self._failed = self._failed or error.kind == "failed"
        self._metrics.refused(error.kind)
        if error.__cause__ is not None:
            log.error("request failed", exc_info=error.__cause__)

    async def stream(self, body: bytes, seconds: float) -> AsyncGenerator[Answer | bytes]:
        """Yield the server-sent events of an answer, token by token, ended by `[DONE]`.

        A body that does not ask for a stream yields its whole `Answer` as the only item. After the
        first event, an error becomes the last event.

        Raises:
            RequestError: An error occurs before the first event.
        """
        began, sent = time.monotonic(), 0
        deadline = began + seconds
        self._in_flight += 1
        try:
            loop, pool = asyncio.get_running_loop(), self._pool(body)
            request = await loop.run_in_executor(pool, read, body, self._options.max_items)
            if not request["stream"]:
                yield await self._answer(lambda: request, pool, deadline - time.monotonic())
                return
            prepared = await loop.run_in_executor(pool, self._prepare, request)
            events = token_events(
                self.predictor, prepared, lambda: self._batcher.submit(prepared.rows, deadline)
            )
            async with aclosing(events):
                async for event in events:
                    if event["index"] > sent:  # a batch that ran again repeats its tokens
                        sent = event["index"]
                        yield b"data:" + dump(event) + b"\n\n"
            self._metrics.answered(time.monotonic() - began)
            yield b"data: [DONE]\n\n"
        except RequestError as error:
            self._refused(error)
            if not sent:
                raise
            yield b"data:" + error.body() + b"\n\n"
        finally:
            self._in_flight -= 1
            self._close_if_idle()

    def _forward(self, rows: list[Row], busy: int) -> list[Any]:
        return run_pass(lambda: self.predictor.forward(rows), self._cores // busy)

    def _prepare(self, request: dict[str, Any]) -> Prepared:
        return prepare(self.predictor, request, self._options.waiting_tokens)

    def describe(self) -> dict[str, Any]:
        """Describe the version: source, run, task, labels, limits, an example and the queue."""
        return {
            **self.about,
            "labels": self.predictor.labels,
            "limits": {
                "max_tokens": self.predictor.max_tokens,
                "max_items": self._options.max_items,
                "max_rows": self._options.max_rows,
                "max_new_tokens": self._options.max_new_tokens,
                "request_tokens": self._options.waiting_tokens,
                "batch_tokens": self.limits.batch_tokens,
                "batch_rows": self.limits.batch_rows,
            },
            "example": dict(self.predictor.example),
            "waiting_rows": self._batcher.waiting_rows,
        }

    def close(self) -> None:
        """Free the threads once no request is in flight.

        Dropping the last reference to the host frees the model's memory.
        """
        self._closed = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closed and not self._in_flight:
            self._batcher.close()
            for pool in (self._tokenizer, self._large_tokenizer, self._finisher):
                pool.shutdown(wait=False)

    def _on_batch(self, record: BatchRecord) -> None:
        self._metrics.batch(record)
        self._metrics.waiting(self._batcher.waiting_rows)
