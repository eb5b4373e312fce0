"""What each task answers, as types for /openapi.json: the shapes that the real client reads."""

from dataclasses import dataclass
from typing import Any

from trainyard.inference import STRICT


@dataclass(frozen=True)
class Label:
    """A label of the model, or a candidate."""

    __pydantic_config__ = STRICT

    label: str
    score: float
    """Its probability; the number itself for a regression."""


@dataclass(frozen=True)
class Entity:
    """A token, or several that are one entity."""

    __pydantic_config__ = STRICT

    score: float
    word: str
    start: int
    """Its first character in the text."""
    end: int
    """The character after its last."""
    entity: str | None = None
    """Label of a token: with aggregation_strategy none."""
    index: int | None = None
    """Number of the token: with aggregation_strategy none."""
    entity_group: str | None = None
    """Label of an entity: with any other aggregation_strategy."""


@dataclass(frozen=True)
class Span:
    """A piece of the context that answers the question; empty for an impossible answer."""

    __pydantic_config__ = STRICT

    score: float
    start: int
    """Its first character in the context."""
    end: int
    """The character after its last."""
    answer: str


@dataclass(frozen=True)
class Proposal:
    """A token for a mask."""

    __pydantic_config__ = STRICT

    score: float
    token: int
    token_str: str
    sequence: str
    """The text with the token in its place."""


@dataclass(frozen=True)
class Summary:
    """A text made shorter."""

    __pydantic_config__ = STRICT

    summary_text: str


@dataclass(frozen=True)
class Translated:
    """A text in another language."""

    __pydantic_config__ = STRICT

    translation_text: str


@dataclass(frozen=True)
class Token:
    """A generated token."""

    __pydantic_config__ = STRICT

    id: int
    logprob: float
    special: bool
    text: str


@dataclass(frozen=True)
class Details:
    """How a text was generated."""

    __pydantic_config__ = STRICT

    finish_reason: str
    """length, eos_token or stop_sequence."""
    generated_tokens: int
    input_length: int
    seed: int | None
    """Of the draws, to repeat them; null without draws."""
    prefill: list[Any]
    """Always empty."""
    tokens: list[Token]


@dataclass(frozen=True)
class Generated:
    """A generated text."""

    __pydantic_config__ = STRICT

    generated_text: str
    details: Details | None = None
    """With `"details": true` only."""


@dataclass(frozen=True)
class Ending:
    """How a streamed text ended."""

    __pydantic_config__ = STRICT

    finish_reason: str
    generated_tokens: int
    input_length: int
    seed: int | None


@dataclass(frozen=True)
class Event:
    """A generated token, as a server-sent event tells it; the last one has the whole text."""

    __pydantic_config__ = STRICT

    index: int
    token: Token
    generated_text: str | None
    details: Ending | None


Vector = list[float]

ANSWERS: dict[str, Any] = {
    "text-classification": list[list[Label]],
    "zero-shot-classification": list[Label] | list[list[Label]],
    "token-classification": list[Entity] | list[list[Entity]],
    "question-answering": Span | list[Span] | list[list[Span]],
    "fill-mask": list[Proposal] | list[list[Proposal]] | list[list[list[Proposal]]],
    "summarization": list[Summary] | list[list[Summary]],
    "translation": list[Translated] | list[list[Translated]],
    "text2text-generation": list[Generated] | list[list[Generated]],
    "text-generation": list[Generated] | list[list[Generated]],
    "feature-extraction": list[Vector] | list[list[Vector]] | list[list[list[Vector]]],
    "sentence-similarity": list[float] | list[list[float]],
}
"""By task: the answer to one input, or to a list of them; more levels where parameters ask for them."""
