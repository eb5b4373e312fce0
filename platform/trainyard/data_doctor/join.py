"""All pairs of rows that share most of their words: an exact set-similarity join.

Two word sets of Jaccard similarity t or more must share a word among the few rarest of each
(prefix filtering: Bayardo et al., Scaling Up All Pairs Similarity Search, WWW 2007; Xiao et al.,
PPJoin, WWW 2008). So only rows that share such a rare word are compared, and no pair is missed, as
MinHash with LSH misses some. benchmarks/compare_near_duplicates.py measures both.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CANDIDATES_AT_ONCE = 500_000


@dataclass(frozen=True)
class NearPairs:
    """Pairs of rows (first, second) and their similarity; three arrays of shape [pairs]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_]) -> "NearPairs":
        """The pairs for which `kept` holds."""
        return NearPairs(self.first[kept], self.second[kept], self.similarity[kept])


def near_pairs(
    words: Sequence[Sequence[str]], others: Sequence[Sequence[str]] | None, similarity: float
) -> NearPairs:
    """Every pair (row of `words`, row of `others`) of at least this Jaccard similarity.

    Without `others`, pairs inside `words`, each once with first > second. A word that occurs twice
    in a row counts twice. Rows without any word are in no pair.
    """
    left = [_numbered(row) for row in words]
    right = left if others is None else [_numbered(row) for row in others]
    order = _rarest_first(left, right)
    a = _Sets(left, order, similarity)
    b = a if others is None else _Sets(right, order, similarity)
    parts = [_verified(a, b, first, second, similarity) for first, second in _candidates(a, b)]
    if not parts:
        none = np.empty(0, np.int64)
        return NearPairs(none, none, np.empty(0))
    return NearPairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _numbered(words: Sequence[str]) -> list[str]:
    """A bag of words as a set: the second «the» of a row is another element than the first."""
    if len(set(words)) == len(words):
        return list(words)
    seen: Counter[str] = Counter()
    found = []
    for word in words:
        found.append(f"{word} {seen[word]}" if seen[word] else word)
        seen[word] += 1
    return found


def _rarest_first(*sides: Sequence[Sequence[str]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for side in sides:
        for row in side:
            counts.update(row)
    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    return {word: i for i, (word, _) in enumerate(ranked)}


class _Sets:
    """Rows as sparse 0/1 matrices over words, rarest first: whole, and their prefixes alone."""

    def __init__(self, rows: Sequence[Sequence[str]], order: dict[str, int], t: float) -> None:
        from scipy.sparse import csr_matrix

        ids = [sorted(order[word] for word in row) for row in rows]
        self.sizes = np.fromiter(map(len, ids), np.int64, len(ids))
        # Of n words, t n must be shared: so one of the n - ceil(t n) + 1 rarest is.
        kept = [n - math.ceil(t * n - 1e-9) + 1 if n else 0 for n in self.sizes]
        prefixes = [row[:k] for row, k in zip(ids, kept, strict=True)]

        def matrix(lists: list[list[int]]) -> Any:
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])])
            flat = np.fromiter((i for row in lists for i in row), np.int32, int(offsets[-1]))
            return csr_matrix(
                (np.ones(len(flat), np.int32), flat, offsets), shape=(len(lists), len(order))
            )

        self.whole, self.prefix = matrix(ids), matrix(prefixes)


def _candidates(a: _Sets, b: _Sets) -> Any:
    """Pairs that share a word of their prefixes, a bounded number at a time."""
    transposed = b.prefix.T.tocsr()
    holders = np.asarray(b.prefix.sum(axis=0)).ravel()
    work = np.asarray(a.prefix @ holders).ravel()  # pairs that each row of a is in
    ends = np.searchsorted(
        np.cumsum(work), np.arange(1, work.sum() // _CANDIDATES_AT_ONCE + 2) * _CANDIDATES_AT_ONCE
    )
    start = 0
    for end in [*np.unique(ends), len(work)]:
        stop = min(int(end) + 1, len(work))
        if stop <= start:
            continue
        found = (a.prefix[start:stop] @ transposed).tocoo()
        first, second = found.row.astype(np.int64) + start, found.col.astype(np.int64)
        if a is b:
            earlier = second < first
            first, second = first[earlier], second[earlier]
        yield first, second
        start = stop


def _verified(
    a: _Sets, b: _Sets, first: NDArray[np.int64], second: NDArray[np.int64], t: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    small = np.minimum(a.sizes[first], b.sizes[second])
    large = np.maximum(a.sizes[first], b.sizes[second])
    possible = small >= t * large - 1e-9
    first, second = first[possible], second[possible]
    shared = np.asarray(a.whole[first].multiply(b.whole[second]).sum(axis=1)).ravel()
    jaccard = shared / (a.sizes[first] + b.sizes[second] - shared)
    near = jaccard >= t - 1e-9
    return first[near], second[near], jaccard[near]
