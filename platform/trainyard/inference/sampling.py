"""Sampling, stop conditions and streaming of tokens for a batch of unrelated rows.

`transformers.generate` draws all rows of a batch from one random stream, so a request's text would
depend on the other requests. `Sampler` gives every row its own stream. It subtracts the logarithm
of Exp(1) noise from the scores, so their argmax is an exact draw from their softmax (Gumbel-max
trick, Maddison et al. 2014, "A* Sampling", section 2). `generate` then decodes greedily.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class Wanted:
    """Generation request of one row: options, limits and callbacks.

    Rows of a batch have equal `options`. With beams or an encoder-decoder, their `max_new_tokens`
    is equal too. Other fields may differ.
    """

    options: dict[str, Any]
    """Options of `generate` and of `Sampler`, except the fields below."""
    max_new_tokens: int
    seed: int = 0
    """Seed of the request."""
    index: int = 0
    """Index among the texts of an input; each text has its own random stream."""
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    emit: Callable[["Generated"], None] | None = None
    """Callback after each token, in the model's thread; must not block or raise."""
    cancelled: Callable[[], bool] | None = None
    """Callback after each token; True ends the row."""

    @property
    def gone(self) -> bool:
        return self.cancelled is not None and self.cancelled()


@dataclass(slots=True)
class Generated:
    """Tokens generated for a row so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Natural log-probability per token, after penalties, before temperature and truncation of the
    distribution. Empty unless log-probabilities or a stream are requested."""
    pieces: list[str] = field(default_factory=list)
    """Added text per token (empty for a part of a character and for special tokens). No entries
    unless stop texts, log-probabilities or a stream are requested."""
    finish_reason: str | None = None
    """length, eos_token, stop_sequence or cancelled; None during generation."""


class Detokenizer:
    """Incremental detokenizer, as in text-generation-inference.

    A token's text depends on other tokens: its space on the token before, and a character of
    several bytes on the tokens after. So a short window is decoded with and without the new token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        self._tokens: list[int] = []
        self._start = self._read = 0

    def add(self, token: int) -> str:
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._read], skip_special_tokens=True)
        after = self._decode(self._tokens[self._start :], skip_special_tokens=True)
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return str(after[len(before) :])


class Sampler:
    """Logits processor: frequency penalty, sampling options, and an independent draw per row."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        import torch

        options = wanted[0].options
        self.scores: Any = None
        self._penalty = options.get("frequency_penalty") or 0.0
        self._prompt: int | None = None
        self._warpers: list[Any] = []
        self._streams: list[Any] = []
        if options.get("do_sample"):
            self._warpers = warpers(options)
            self._streams = [torch.Generator().manual_seed(_stream(row)) for row in wanted]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores [rows, vocabulary] whose argmax is the next token of each row."""
        import torch

        self._prompt = input_ids.shape[1] if self._prompt is None else self._prompt
        if self._penalty:
            generated = input_ids[:, self._prompt :]
            counts = torch.zeros_like(scores).scatter_add_(
                1, generated, torch.ones_like(generated, dtype=scores.dtype)
            )
            scores = scores - self._penalty * counts
        self.scores = scores
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        if self._streams:
            noise = torch.stack(
                [
                    torch.empty(scores.shape[1]).exponential_(generator=stream)
                    for stream in self._streams
                ]
            )
            scores = scores - noise.clamp_min(1e-30).log().to(scores.device)
        return scores


def warpers(options: dict[str, Any]) -> list[Any]:
    """Build the processors for temperature and truncation, in the order of transformers."""
    import transformers

    return [
        getattr(transformers, name)(options[option])
        for option, name, neutral in (
            ("temperature", "TemperatureLogitsWarper", 1.0),
            ("top_k", "TopKLogitsWarper", 0),
            ("top_p", "TopPLogitsWarper", 1.0),
            ("min_p", "MinPLogitsWarper", 0.0),
            ("typical_p", "TypicalLogitsWarper", 1.0),
        )
        if options.get(option) not in (None, neutral)
    ]


class Watcher:
    """Stopping criterion that collects each row's tokens and ends each row independently."""

    def __init__(
        self, wanted: Sequence[Wanted], sampler: Sampler, tokenizer: Any, end: set[int]
    ) -> None:
        self.generated = [Generated() for _ in wanted]
        self._wanted = wanted
        self._sampler = sampler
        self._end = end
        self._texts = [
            Detokenizer(tokenizer) if row.stop or row.logprobs or row.emit else None
            for row in wanted
        ]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        del scores, kwargs
        import torch

        tokens = input_ids[:, -1].tolist()
        logprobs = [0.0] * len(tokens)
        if any(row.logprobs or row.emit for row in self._wanted):
            every = self._sampler.scores.log_softmax(dim=-1)
            logprobs = every.gather(1, input_ids[:, -1:])[:, 0].tolist()
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if self.generated[i].finish_reason is None:
                self._add(i, token, logprob)
        done = [row.finish_reason is not None for row in self.generated]
        return torch.tensor(done, device=input_ids.device)

    def _add(self, i: int, token: int, logprob: float) -> None:
        wanted, generated, texts = self._wanted[i], self.generated[i], self._texts[i]
        generated.tokens.append(token)
        if wanted.logprobs or wanted.emit:
            generated.logprobs.append(logprob)
        if texts is not None:
            generated.pieces.append(texts.add(token))
        if token in self._end:
            generated.finish_reason = "eos_token"
        elif self._stopped(wanted, generated):
            generated.finish_reason = "stop_sequence"
        elif len(generated.tokens) >= wanted.max_new_tokens:
            generated.finish_reason = "length"
        elif wanted.gone:
            generated.finish_reason = "cancelled"
        if wanted.emit is not None:
            wanted.emit(generated)

    @staticmethod
    def _stopped(wanted: Wanted, generated: Generated) -> bool:
        if not wanted.stop or not generated.pieces[-1]:
            return False
        reach = max(map(len, wanted.stop)) + len(generated.pieces[-1])
        tail = ""
        for piece in reversed(generated.pieces):
            tail = piece + tail
            if len(tail) >= reach:
                break
        return any(stop in tail for stop in wanted.stop)


def _stream(row: Wanted) -> int:
    """Return the seed of a row's random stream; NumPy's SeedSequence decorrelates near seeds."""
    return int(np.random.SeedSequence([row.seed, row.index]).generate_state(1, np.uint64)[0])
