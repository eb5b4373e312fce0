"""One version of one model, loaded and warm: from the bytes of a request to those of the answer.

Reading and tokenizing run in threads of their own, forward passes in others (the batcher's; one
alone over all cores in that of `threads.py`), large answers are made in yet others, so the event loop is
always free for whoever asks next. No Ray.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Self

from trainyard.errors import UserError
from trainyard.inference import PREDICTORS, Limits, Predictor, Prepared, Row, json_schema
from trainyard.models import ENGINES, choose
from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.batcher import Batcher
from trainyard.serving.replica.codec import dump, prepare, read
from trainyard.serving.replica.cost import BatchLimits, BatchRecord
from trainyard.serving.replica.metrics import Watch
from trainyard.serving.replica.model_source import locate, task_of
from trainyard.serving.replica.streams import given_up_on_leaving, token_events
from trainyard.serving.replica.threads import process_threads, run_pass

log = logging.getLogger("ray.serve.trainyard")

BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Default of `batch_tokens`: where a larger batch no longer makes the rows of it cheaper."""

SMALL_BODY = 16_384
"""Bytes. Larger ones are read and tokenized in another thread: no short text waits for a megabyte."""

WARM_UP_PASSES = 3

ANSWER_NUMBERS = 8_000_000
"""Of an answer that holds a vector for each token: some 160 MB of JSON, several times that on the way."""

SMALL_ANSWER = 512
"""Numbers from the model that become an answer on the event loop: for a few labels or one vector that
takes about as long as waking a thread, and under load a thread also waits for its turn. Whatever is
larger, or no array, would hold up everybody and goes to a thread."""


class Host:
    """Answers requests to one predictor. Built by `load`; `close` it when another takes over."""

    def __init__(
        self, predictor: Predictor, options: ModelOptions, about: Mapping[str, Any], watch: Watch
    ) -> None:
        self.predictor = predictor
        predictor.limits = Limits(
            options.max_rows, options.waiting_tokens, options.max_new_tokens, ANSWER_NUMBERS
        )
        self.about = dict(about)
        self._options = options
        self._watch = watch
        self._in_work = 0
        self._closed = False
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._large_tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize-large")
        self._finisher = ThreadPoolExecutor(2, thread_name_prefix="answer")
        self._cores = options.threads or process_threads()
        device = predictor.device.type
        engine = ENGINES[about.get("engine", "torch")]
        passes = engine.passes or self._cores
        # Else in an engine's own threads, or on the GPU.
        in_torch = device == "cpu" and engine.keeps_model
        # Passes of different lengths, as generation makes them, must not starve each other of cores.
        alone = device != "cpu" or predictor.model.can_generate()
        self.limits = BatchLimits(
            batch_tokens=options.batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]),
            batch_rows=options.batch_rows,
            waiting_tokens=options.waiting_tokens,
        )
        if predictor.max_tokens is None:  # one text would be a pass of any size
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
    def load(cls, version: Version, options: ModelOptions, watch: Watch) -> Self:
        """Load and warm up; minutes for a large model, so call it in a thread.

        Raises:
            UserError: when the model is missing, unsafe, damaged, or of no known task.
        """
        import torch

        began = time.perf_counter()
        torch.set_num_threads(options.threads or process_threads())
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder, about = locate(version, options.max_parameters)
        task = options.task or task_of(folder)
        if task not in PREDICTORS:
            raise UserError(f"task '{task}' is none of {', '.join(sorted(PREDICTORS))}")
        choice = choose(options.engine, options.dtype, folder, device)
        predictor = PREDICTORS[task].load(str(folder), device=device, **choice.how())
        about |= {"task": task, "device": device, **choice.about()}
        about["parameters"] = json_schema(predictor.parameters)
        host = cls(predictor, options, about, watch)
        host.warm_up()
        host.about["load_seconds"] = round(time.perf_counter() - began, 2)
        return host

    @property
    def by_line(self) -> bool:
        """Whether requests may come past Serve, by a line, see `line.py`: where answers take no time."""
        return not self.predictor.model.can_generate()

    @property
    def healthy(self) -> bool:
        """Whether it can still answer."""
        return not self._batcher.broken

    def warm_up(self) -> None:
        """Run the task's example through everything, so that the first caller does not pay for it.

        Raises:
            UserError: when the model cannot answer even that.
        """
        example = json.dumps(self.predictor.example).encode()
        try:
            for _ in range(WARM_UP_PASSES):
                prepared = self._prepare(example)
                results = self.predictor.forward_all(prepared.rows)
                dump(self.predictor.postprocess(prepared, results))
        except Exception as error:
            self.close()  # its threads would keep the model for ever
            raise UserError(
                f"the model of {self.about['source']} fails on the example of its task "
                f"({' '.join(str(error).split())[:200]}); is it really a model for "
                f"{self.predictor.task}?"
            ) from error

    async def answer(self, body: bytes, seconds: float) -> Answer:
        """The answer to a request's body, wanted within `seconds`; failures are answers too."""
        began = time.monotonic()
        self._in_work += 1
        try:
            answer = await self._compute(body, began, began + seconds)
        except RequestError as error:
            self._refused(error)
            return Answer.to(error)
        except Exception:  # a defect of ours
            log.exception("request failed")
            return Answer.to(
                RequestError("failed", "the server failed on this request; see its log")
            )
        finally:
            self._in_work -= 1
            self._close_if_idle()
        self._watch.answered(time.monotonic() - began)
        return answer

    async def _compute(self, body: bytes, began: float, deadline: float) -> Answer:
        made: list[tuple[Prepared, float]] = []

        def make() -> Sequence[Row]:
            prepared = self._prepare(body)
            mark(prepared)
            made.append((prepared, time.monotonic()))
            self._watch.waiting(self._batcher.waiting_rows + len(prepared.rows))
            return prepared.rows

        with given_up_on_leaving(self.predictor) as mark:
            done = await self._batcher.submit_from(self._pool(body), make, deadline)
        ((prepared, tokenized),) = made
        result = await self._finish(prepared, done.results)
        self._watch.timed(tokenized - began, done.queue_seconds, done.forward_seconds)
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
        self._watch.refused(error.kind)
        if error.__cause__ is not None:
            log.error("request failed", exc_info=error.__cause__)

    async def stream(self, body: bytes, seconds: float) -> AsyncGenerator[bytes]:
        """Server-sent events of an answer as it is made, token by token, ended by `[DONE]`.

        Raises:
            RequestError: when there is none; once the first event went out, a last event tells it.
        """
        began, sent = time.monotonic(), 0
        deadline = began + seconds
        self._in_work += 1
        try:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self._pool(body), self._prepare, body)
            events = token_events(
                self.predictor, prepared, lambda: self._batcher.submit(prepared.rows, deadline)
            )
            async with aclosing(events):
                async for event in events:
                    if event["index"] > sent:  # a batch that ran again repeats itself
                        sent = event["index"]
                        yield b"data:" + dump(event) + b"\n\n"
            self._watch.answered(time.monotonic() - began)
            yield b"data: [DONE]\n\n"
        except RequestError as error:
            self._refused(error)
            if not sent:
                raise
            yield b"data:" + error.body() + b"\n\n"
        finally:
            self._in_work -= 1
            self._close_if_idle()

    def _forward(self, rows: list[Row], busy: int) -> list[Any]:
        return run_pass(lambda: self.predictor.forward(rows), self._cores // busy)

    def _prepare(self, body: bytes) -> Prepared:
        request = read(body, self._options.max_items)
        return prepare(self.predictor, request, self._options.waiting_tokens)

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}` says."""
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
        """Answer what is in work, then free the threads; the memory goes with the last reference."""
        self._closed = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closed and not self._in_work:
            self._batcher.close()
            for pool in (self._tokenizer, self._large_tokenizer, self._finisher):
                pool.shutdown(wait=False)

    def _on_batch(self, record: BatchRecord) -> None:
        self._watch.batch(record)
        self._watch.waiting(self._batcher.waiting_rows)
