"""An axis for a hyperparameter: where its values lie between 0 and 1, and which marks help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainyard.report.kit import number
from trainyard.storage import real, words

_ROUND = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Axis:
    """`kind` is "log", "linear", or "listed" for words and for numbers chosen from a list."""

    name: str
    kind: Literal["log", "linear", "listed"]
    low: float = 0.0
    high: float = 1.0
    values: tuple[str, ...] = ()

    def position(self, value: Any) -> float | None:
        """0 to 1; None for what is not on the axis."""
        if self.kind == "listed":
            shown = label(value)
            if shown not in self.values:
                return None
            return (self.values.index(shown) + 0.5) / len(self.values)
        found = real(value)
        if found is None or not math.isfinite(found) or (self.kind == "log" and found <= 0):
            return None
        low, high, at = (self._scaled(v) for v in (self.low, self.high, found))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of a few round values, or of all listed ones."""
        if self.kind == "listed":
            return [(position(self, v), v) for v in self.values]
        shown = _round_values(self.low, self.high, log=self.kind == "log")
        return [(position(self, v), number(v, 2)) for v in shown or [self.low, self.high]]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.kind == "log" else value


def position(axis: Axis, value: Any) -> float:
    """As `Axis.position`, of a value that is on the axis."""
    found = axis.position(value)
    return 0.5 if found is None else found


def label(value: Any) -> str:
    """A value as its axis shows it."""
    found = real(value)
    return words(value) if found is None else number(found, 3)


def axis(name: str, domain: Any, values: Sequence[Any]) -> Axis:
    """The axis of a hyperparameter, from its domain in the sweep's space and its values so far."""
    kind = words(domain).partition(":")[0]
    numbers = [found for v in values if (found := real(v)) is not None and math.isfinite(found)]
    if kind in ("choice", "grid") or not numbers or any(real(v) is None for v in values):
        order = sorted({label(v): v for v in values}.items(), key=lambda item: _order(item[1]))
        return Axis(name, "listed", values=tuple(shown for shown, _ in order))
    low, high = min(numbers), max(numbers)
    log = low > 0 and (kind == "loguniform" or (kind != "uniform" and high / low >= 30))
    return Axis(name, "log" if log else "linear", low, high)


def _order(value: Any) -> tuple[bool, float, str]:
    found = real(value)
    return found is None, 0.0 if found is None else found, words(value)


def _round_values(low: float, high: float, *, log: bool) -> list[float]:
    if not high > low:
        return [low]
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in _ROUND if low <= m * 10.0**p <= high]
        return found if len(found) <= 6 else [v for v in found if f"{v:e}".startswith("1.0")]
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = max((step * m for m in (1, 2, 5) if (high - low) / (step * m) >= 2), default=step)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]
