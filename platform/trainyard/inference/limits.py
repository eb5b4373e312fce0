"""Limits of one request, counted before its rows are built: a small body must be small work."""

from dataclasses import dataclass

from trainyard.errors import UserError


class TooLargeError(UserError):
    """A request that would become more than may be computed at once."""


@dataclass(frozen=True)
class Limits:
    """Of one request. None is no limit: batch inference works for one caller, a server for all.

    Attributes:
        rows: Sequences that a request becomes, or is answered by.
        tokens: Tokens of all its rows.
        new_tokens: Tokens generated for one text.
        numbers: Of vectors in an answer.
    """

    rows: int | None = None
    tokens: int | None = None
    new_tokens: int | None = None
    numbers: int | None = None


class Budget:
    """Remaining budget of one request."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rows = self._tokens = self._numbers = 0

    def spend(self, rows: int, what: str, tokens: int = 0, numbers: int = 0) -> None:
        """Count `rows`, which are `what` to the caller, before they are built.

        Raises:
            TooLargeError: when the request has no more to spend.
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
                    f"the request holds {spent} {name}, at most {most} may come at once; send fewer "
                    "or shorter inputs, or ask for less"
                )
