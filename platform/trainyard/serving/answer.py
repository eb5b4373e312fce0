"""HTTP response of a model to one request."""

from dataclasses import dataclass, field
from typing import Self

from trainyard.serving.errors import RequestError


@dataclass(frozen=True)
class Answer:
    """HTTP response; `body` is encoded JSON."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_error(cls, error: RequestError) -> Self:
        return cls(error.status, error.body(), error.headers())
