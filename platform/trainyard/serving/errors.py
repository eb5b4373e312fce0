"""What a request can fail with: one table of HTTP statuses and of `error_type`s in the body."""

import json
import math
from typing import Any

STATUSES = {
    "malformed": (400, "validation"),
    "invalid": (422, "validation"),
    "unauthorized": (401, "unauthorized"),
    "not_found": (404, "not_found"),
    "method": (405, "validation"),
    "slow_body": (408, "timeout"),
    "too_large": (413, "too_large"),
    "overloaded": (429, "overloaded"),
    "left": (499, "timeout"),
    "failed": (500, "generation"),
    "late": (503, "overloaded"),
    "unavailable": (503, "unavailable"),
}
"""Kind of failure -> HTTP status, `error_type` as the Hugging Face client knows it. 499 is nginx's for a
caller who left, whom nothing reaches any more."""


class RequestError(Exception):
    """A request that gets no answer; the message is one sentence for whoever sent it.

    Attributes:
        kind: a key of `STATUSES`.
        retry_after: seconds after which trying again makes sense, or None.
    """

    def __init__(self, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self), self.retry_after)

    @property
    def status(self) -> int:
        """HTTP status."""
        return STATUSES[self.kind][0]

    def body(self) -> bytes:
        """The JSON that is sent."""
        return json.dumps({"error": str(self), "error_type": STATUSES[self.kind][1]}).encode()

    def headers(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds as HTTP wants it, where it makes sense."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}
