"""The answer of a model to one request."""

from dataclasses import dataclass, field
from typing import Self

from trainyard.serving.errors import RequestError


@dataclass(frozen=True)
class Answer:
    """What goes back over HTTP."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def to(cls, error: RequestError) -> Self:
        """What a request gets that fails."""
        return cls(error.status, error.body(), error.headers())
