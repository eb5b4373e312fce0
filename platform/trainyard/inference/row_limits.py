"""Limits of one request, checked before rows are built: a small body must not cause much work."""

from dataclasses import dataclass

from trainyard.errors import UserError


class TooLargeError(UserError):
    """Error for a request that exceeds the limits."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request. None means no limit, as in batch inference; a server sets limits.

    Attributes:
        rows: Maximum number of rows of the request, or of parts of its answer.
        tokens: Maximum number of tokens of all rows.
        new_tokens: Maximum number of tokens generated for one text.
        numbers: Maximum number of elements of all vectors in the answer.
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
        """Add to the counts of a request, before the work is done.

        Args:
            rows: Number of rows.
            what: Name of the rows in the error.
            tokens: Number of tokens of these rows.
            numbers: Number of elements of vectors in the answer.

        Raises:
            TooLargeError: A count exceeds its limit.
        """
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
                    f"the request holds {spent} {name}, at most {most} are allowed in one "
                    "request; split a list over several requests, send shorter inputs, or ask for less"
                )
