"""Errors of requests, and the table of their HTTP statuses and `error_type` values."""

import json
import math
from typing import Any

STATUSES = {
    "malformed": (400, "validation"),
    "invalid": (422, "validation"),
    "unauthorized": (401, "unauthorized"),
    "foreign": (403, "unauthorized"),
    "not_found": (404, "not_found"),
    "method": (405, "validation"),
    "slow_body": (408, "timeout"),
    "too_large": (413, "too_large"),
    "media_type": (415, "validation"),
    "overloaded": (429, "overloaded"),
    "left": (499, "timeout"),
    "failed": (500, "generation"),
    "late": (503, "overloaded"),
    "unavailable": (503, "unavailable"),
}
"""Kind of error -> HTTP status, and `error_type` in the body. `huggingface_hub` knows the types
validation, generation and overloaded. 499 is nginx's status for a client that disconnected."""


class RequestError(Exception):
    """Error of a request that gets no result; its message is one sentence for the client.

    Attributes:
        kind: Key of `STATUSES`.
        retry_after: Seconds after which a retry makes sense, sent as Retry-After; None sends no
            header.
    """

    def __init__(self, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self), self.retry_after)

    @property
    def status(self) -> int:
        return STATUSES[self.kind][0]

    def body(self) -> bytes:
        return json.dumps({"error": str(self), "error_type": STATUSES[self.kind][1]}).encode()

    def headers(self) -> dict[str, str]:
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}
