"""Limits of one request, checked before its rows are built: a small body must not cause much work."""

from dataclasses import dataclass

from trainyard.errors import UserError


class TooLargeError(UserError):
    """Error for a request that exceeds the limits."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request. None means no limit, as in batch inference; a server sets limits.

    Attributes:
        rows: Sequences in the request or in its answer.
        tokens: Tokens of all rows.
        new_tokens: Tokens generated for one text.
        numbers: Elements of all vectors in the answer.
    """

    rows: int | None = None
    tokens: int | None = None
    new_tokens: int | None = None
    numbers: int | None = None


class Budget:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rows = self._tokens = self._numbers = 0

    def spend(self, rows: int, what: str, tokens: int = 0, numbers: int = 0) -> None:
        """Count `rows` before they are built; `what` names them in the error."""
        self._rows += rows
        self._tokens += tokens
        self._numbers += numbers
        for name, spent, most in (
            (what, self._rows, self._limits.rows),
            ("tokens", self._tokens, self._limits.tokens),
            ("numbers", self._numbers, self._limits.numbers),
        ):
            if most is not None and spent > most:
                raise TooLargeError(
                    f"the request holds {spent} {name}, at most {most} may come at once; split a "
                    "list over several requests, send shorter inputs, or ask for less"
                )
