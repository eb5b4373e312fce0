"""Sketches of the texts of a split: they estimate how much two splits share, in flat memory.

A sketch keeps the smallest distinct hashes of the normalized texts (bottom-k: Cohen and Kelleher
2007). Up to the smaller of two sketches' bounds, both have every hash. So the texts with these
hashes are a random sample of the texts of either split.
"""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from trainyard.data.held_out import text_hashes

if TYPE_CHECKING:
    import pyarrow as pa

SKETCH_SIZE = 1_000
"""Maximum number of hashes of a sketch."""
_FEWEST_COMPARED = 10
_LARGEST = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Estimate of the share of a split's distinct texts that other texts contain."""

    compared: int
    """Number of distinct texts that were compared."""
    shared: int
    exact: bool
    """True if all texts were compared."""

    @property
    def share(self) -> float:
        return self.shared / self.compared if self.compared else 0.0

    @property
    def is_reliable(self) -> bool:
        """Return True if enough texts were compared to decide by the share."""
        return self.exact or self.compared >= _FEWEST_COMPARED


def _no_hashes() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, eq=False)
class TextSketch:
    """Sketch of a split: the `SKETCH_SIZE` smallest distinct hashes of its texts, see `text_hashes`."""

    hashes: NDArray[np.uint64] = field(default_factory=_no_hashes)
    """Ascending. If there are fewer than `SKETCH_SIZE`, they are all hashes of the split."""

    @property
    def bound(self) -> int:
        """Largest hash up to which the sketch has every hash of the split."""
        return _LARGEST if len(self.hashes) < SKETCH_SIZE else int(self.hashes[-1])

    def with_hashes(self, hashes: NDArray[np.uint64]) -> Self:
        """Return the sketch of these texts and of texts with `hashes`, shape [any number].

        With the hashes of another sketch, this is the sketch of both splits.
        """
        below = hashes[hashes <= np.uint64(self.bound)]
        return type(self)(np.unique(np.concatenate([self.hashes, below]))[:SKETCH_SIZE])

    def overlap(self, other: "TextSketch") -> Overlap:
        """Estimate the share of these texts that the split of `other` contains."""
        bound = min(self.bound, other.bound)
        compared = self.hashes[self.hashes <= np.uint64(bound)]
        return Overlap(
            compared=len(compared),
            shared=int(np.isin(compared, other.hashes).sum()),
            exact=bound == _LARGEST,
        )

    def encoded(self) -> str:
        """Encode the hashes, little-endian, in Base64."""
        return base64.b64encode(self.hashes.astype("<u8").tobytes()).decode()

    @classmethod
    def decoded(cls, text: str) -> Self:
        """Decode the result of `encoded`.

        Raises:
            ValueError: `text` is not such a result.
        """
        try:
            hashes = np.frombuffer(base64.b64decode(text, validate=True), "<u8").astype(np.uint64)
        except (TypeError, binascii.Error) as error:
            raise ValueError(f"a sketch of texts is not in Base64: {error}") from error
        return cls(hashes)


def text_columns(rows: "pa.RecordBatch | pa.Table") -> list[list[str]]:
    """Return the values of the canonical columns `text` and `text_pair` (pairs only)."""
    return [rows[name].to_pylist() for name in ("text", "text_pair") if name in rows.schema.names]


def sketch_of(batches: "Iterable[pa.RecordBatch]") -> TextSketch:
    """Build the sketch of canonical record batches; one batch is in memory at a time."""
    found = TextSketch()
    for batch in batches:
        found = found.with_hashes(text_hashes(*text_columns(batch)))
    return found
