"""All pairs of rows that share most of their words: an exact set-similarity join.

Two word sets of Jaccard similarity t or more must share one of the few rarest words of each (prefix
filtering: Bayardo et al., Scaling Up All Pairs Similarity Search, WWW 2007), and how many of them
they share bounds how many they can share in all (Xiao et al., PPJoin, WWW 2008). So few rows are
compared in full, and no pair is missed, as MinHash with LSH misses some.
benchmarks/compare_near_duplicates.py measures both.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CANDIDATES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class NearPairs:
    """Pairs of rows (first, second) and their similarity; three arrays of shape [pairs]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]


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
    parts = [
        _verified(a, b, first, second, similarity)
        for first, second in _candidates(a, b, similarity)
    ]
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
        # At least t n of n words are shared, so one of the n - ceil(t n) + 1 rarest is.
        self.needed = np.ceil(t * self.sizes - 1e-9).astype(np.int64)
        prefixes = [
            row[: n - needed + 1]
            for row, n, needed in zip(ids, self.sizes.tolist(), self.needed.tolist(), strict=True)
        ]

        self.last = np.array([prefix[-1] if prefix else -1 for prefix in prefixes], np.int64)

        def matrix(lists: list[list[int]]) -> Any:
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])])
            flat = np.fromiter((i for row in lists for i in row), np.int32, int(offsets[-1]))
            return csr_matrix(
                (np.ones(len(flat), np.int32), flat, offsets), shape=(len(lists), len(order))
            )

        self.whole, self.prefix = matrix(ids), matrix(prefixes)


def _candidates(a: _Sets, b: _Sets, t: float) -> Any:
    """Pairs that share enough words of their prefixes, looked for a bounded number at a time."""
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
        # Beyond the prefix that ends first its row has needed - 1 words: no more can be shared.
        beyond = np.where(a.last[first] <= b.last[second], a.needed[first], b.needed[second]) - 1
        shared = np.ceil(t / (1 + t) * (a.sizes[first] + b.sizes[second]) - 1e-9)
        near = found.data + beyond >= shared
        if a is b:
            near &= second < first
        yield first[near], second[near]
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
