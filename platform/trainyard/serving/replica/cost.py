"""Forward passes: what they may hold, what they held, what they cost, whether memory ran out."""

import sys
from dataclasses import dataclass

import numpy as np

from trainyard.serving.errors import RequestError


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a batcher.

    Attributes:
        batch_tokens: rows times longest row of one forward pass.
        batch_rows: rows of one forward pass.
        waiting_tokens: tokens that may wait; what comes on top is refused.
    """

    batch_tokens: int = 4096
    batch_rows: int = 128
    waiting_tokens: int = 131_072


@dataclass(frozen=True)
class BatchRecord:
    """One forward pass, for metrics. `text_tokens` over `padded_tokens` is the padding efficiency."""

    rows: int
    text_tokens: int
    padded_tokens: int
    seconds: float


class CostModel:
    """Seconds of a forward pass, or of work in it, as a straight line over its padded tokens.

    Learned as it runs: weighted least squares in which a pass counts half after about `MEMORY` newer
    ones, so it follows a machine that gets slower.
    """

    MEMORY = 50

    def __init__(self) -> None:
        self._sums = np.zeros(5)

    def observe(self, tokens: int, seconds: float) -> None:
        """One pass over `tokens` padded tokens took `seconds`."""
        x, y = float(tokens), seconds
        self._sums = self._sums * 0.5 ** (1 / self.MEMORY) + (1.0, x, y, x * x, x * y)

    def line(self) -> tuple[float, float]:
        """Seconds of an empty pass and seconds per token, neither below zero."""
        n, x, y, xx, xy = self._sums
        if n == 0:
            return 0.0, 0.0
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 1e-9 * n * xx else 0.0
        # A slope through the origin where passes of one size, or noise, leave no other.
        slope = slope if slope > 0 else y / x
        return max(0.0, (y - slope * x) / n), slope

    def overhead_tokens(self) -> float:
        """What a pass costs whatever it holds, in tokens."""
        fixed, slope = self.line()
        return fixed / slope if slope else 0.0


def out_of_memory(error: Exception) -> bool:
    """Whether a forward pass failed for want of memory (torch has a class for it on GPUs only)."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def let_go(error: Exception) -> None:
    """Free what a failed pass left behind, so that a smaller one has its memory.

    Its tensors are in the frames that the traceback keeps, and then in the cache of CUDA.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__
    torch = sys.modules.get("torch")
    if torch is not None and out_of_memory(error) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def as_failure(error: Exception, length: int) -> RequestError:
    """What the caller of a row is told that fails even alone."""
    if out_of_memory(error):
        return RequestError(
            "failed", f"an input of {length} tokens does not fit into memory; shorten it"
        )
    failure = RequestError(
        "failed", "the model failed on this input; its replica's log has the reason"
    )
    failure.__cause__ = error
    return failure
