"""Hold out validation rows of a training file; one function per split version.

A run keeps the version that it started with: another version would change its training rows.
`labels` has the shape [rows] or [rows, labels], and `texts` holds the hashes of `text_hashes`.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError

Parts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of the rows to train on and of the held-out rows, both ascending."""


def by_class(
    labels: NDArray[np.generic], texts: NDArray[np.uint64], fraction: float, seed: int
) -> Parts:
    """Hold out `fraction` of each class, and at least one row of each class of two or more rows.

    Regression targets and multi-hot labels have no classes: their rows are drawn at random. `texts`
    is not used, so equal texts can be on both sides. With many small classes, more than `fraction`
    of all rows is held out. This is version 1, which older runs and test shares use.

    Raises:
        UserError: No row can be held out.
    """
    del texts
    parts = draw_by_class(labels, fraction, seed)
    if not len(parts[1]):
        raise _too_few(len(labels), "no label has two rows")
    return parts


def draw_by_class(labels: NDArray[np.generic], fraction: float, seed: int) -> Parts:
    """Draw rows as `by_class` does, but hold out none if no class has two rows."""
    strata = labels if _are_classes(labels) else np.zeros(len(labels), np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    _, stratum, counts = np.unique(strata[shuffled], return_inverse=True, return_counts=True)
    grouped = np.argsort(stratum, kind="stable")
    rank = np.empty(len(labels), np.int64)
    rank[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.minimum(np.maximum(np.rint(counts * fraction), 1), counts - 1)
    is_held = rank < held[stratum]
    return np.sort(shuffled[~is_held]), np.sort(shuffled[is_held])


def by_text(
    labels: NDArray[np.generic], texts: NDArray[np.uint64], fraction: float, seed: int
) -> Parts:
    """Hold out `fraction` of all rows; rows of equal text stay on one side (version 2).

    Groups of equal text hashes are sorted by the class of their first row, and randomly within a
    class. Error diffusion along this order (Floyd and Steinberg 1976) holds out `fraction` of each
    class to within one group, even of small classes. No class loses its last training row.

    Raises:
        UserError: No row can be held out.
    """
    rng = np.random.default_rng(seed)
    classes = labels if _are_classes(labels) else np.zeros(len(labels), np.int64)
    _, first, group, sizes = np.unique(
        texts, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((rng.random(len(sizes)), classes[first]))
    is_held = np.zeros(len(sizes), bool)
    owed = rng.random() - 0.5
    for index in order.tolist():
        owed += fraction * sizes[index]
        if owed >= sizes[index] / 2:
            is_held[index] = True
            owed -= sizes[index]
    _keep_every_class(is_held, classes, group)
    if not is_held.any():
        candidates = [index for index in order.tolist() if _can_go(index, classes, group)]
        if not candidates:
            raise _too_few(len(labels), "every text is the only one of some label")
        is_held[min(candidates, key=lambda index: int(sizes[index]))] = True
    return np.flatnonzero(~is_held[group]), np.flatnonzero(is_held[group])


VERSIONS: dict[int, Callable[[NDArray[np.generic], NDArray[np.uint64], float, int], Parts]] = {
    1: by_class,
    2: by_text,
}


def text_hashes(*columns: Sequence[str]) -> NDArray[np.uint64]:
    """Hash the normalized texts of each row to 64 bits; shape [rows]."""
    return np.fromiter((_text_hash(row) for row in zip(*columns, strict=True)), np.uint64)


def _text_hash(row: Sequence[str]) -> int:
    texts = "\0".join(map(normalize_text, row))
    digest = hashlib.blake2b(texts.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def normalize_text(text: str) -> str:
    """Convert a text to Unicode NFKC, fold its case, and put single spaces between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _are_classes(labels: NDArray[np.generic]) -> bool:
    return labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)


def _keep_every_class(
    is_held: NDArray[np.bool_], classes: NDArray[np.generic], group: NDArray[np.intp]
) -> None:
    for lost in np.setdiff1d(classes, classes[~is_held[group]]):
        is_held[group[np.flatnonzero(classes == lost)[0]]] = False


def _can_go(index: int, classes: NDArray[np.generic], group: NDArray[np.intp]) -> bool:
    """Return True if every class keeps a training row when the group `index` is held out."""
    return len(np.setdiff1d(classes, classes[group != index])) == 0


def _too_few(rows: int, reason: str) -> UserError:
    return UserError(
        f"no validation rows can be held out of {rows} training rows, because {reason}; add rows or "
        "give a --validation-file"
    )
