"""Duplicate rows: identical, equal except for case and spacing, or near duplicates.

Near duplicates are found by an exact set-similarity join. Two word sets of Jaccard similarity t or more
share at least one of the rarest words of each (prefix filtering: Bayardo et al., Scaling Up All Pairs
Similarity Search, WWW 2007). The number of shared rare words bounds the number of all shared words
(Xiao et al., PPJoin, WWW 2008). So few pairs are compared in full and, unlike MinHash with LSH, no
pair is missed. benchmarks/compare_near_duplicates.py measures both methods.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.rows import Rows

_CANDIDATES_AT_ONCE = 4_000_000


def first_rows(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return for each row the index of the first row with the same key; shape [rows]."""
    first: dict[Hashable, int] = {}
    return np.fromiter(
        (first.setdefault(key, i) for i, key in enumerate(keys)), np.int64, len(keys)
    )


def matches(keys: Sequence[Hashable], others: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return for each of `keys` the first index of an equal key in `others` or -1; shape [rows]."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(others):
        first.setdefault(key, i)
    return np.fromiter((first.get(key, -1) for key in keys), np.int64, len(keys))


def duplicates(splits: Sequence[Rows], similarity: float, examples: int) -> dict[str, Any]:
    """Count duplicates inside each split and between each two splits, with examples.

    Inside a split, `exact` and `normalized` count rows that repeat an earlier row. Between splits, they
    count rows of the second split that occur in the first. `near` counts rows with a near
    duplicate, of Jaccard similarity `similarity` or more, that differs after normalization. Between
    splits, `near` leaves out rows that occur in the first split.
    """
    inside = {rows.name: _inside(rows, similarity, examples) for rows in splits}
    between = [
        _between(first, second, similarity, examples) for first, second in combinations(splits, 2)
    ]
    return {"inside": inside, "between": between}


def _inside(rows: Rows, similarity: float, examples: int) -> dict[str, Any]:
    position = np.arange(len(rows))
    exact, normalized = first_rows(rows.exact), first_rows(rows.normalized)
    near = _near(rows, np.flatnonzero(normalized == position), None, similarity)
    repeats = np.flatnonzero(normalized != position)
    return {
        "rows": len(rows),
        "exact": int((exact != position).sum()),
        "normalized": len(repeats),
        "near": int(np.isin(normalized, [near.first, near.second]).sum()),
        "examples": [
            *({"first": rows.row(int(normalized[i])), "second": rows.row(int(i)), "similarity": 1.0}
              for i in repeats[:examples]),
            *_examples(near, rows, rows, examples),
        ],
    }  # fmt: skip


def _between(first: Rows, second: Rows, similarity: float, examples: int) -> dict[str, Any]:
    exact = matches(second.exact, first.exact)
    normalized = matches(second.normalized, first.normalized)
    first_of = first_rows(second.normalized)
    different = np.flatnonzero((first_of == np.arange(len(second))) & (normalized < 0))
    near = _near(second, different, first, similarity)
    leaked = np.flatnonzero(normalized >= 0)
    return {
        "first": first.name,
        "second": second.name,
        "rows": len(second),
        "exact": int((exact >= 0).sum()),
        "normalized": len(leaked),
        "near": int(np.isin(first_of, near.first).sum()),
        "examples": [
            *({"first": first.row(int(normalized[i])), "second": second.row(int(i)),
               "similarity": 1.0} for i in leaked[:examples]),
            *_examples(near, second, first, examples),
        ],
    }  # fmt: skip


def _near(
    rows: Rows, indices: NDArray[np.int64], others: Rows | None, similarity: float
) -> "NearPairs":
    """Find near pairs between the distinct rows at `indices` and the distinct rows of `others`.

    Without `others`, pairs are formed among the rows at `indices`. Repeated rows are left out,
    because n equal rows would yield n² pairs.
    """
    words, other_words, other_indices = [rows.words[i] for i in indices], None, indices
    if others is not None:
        other_indices = np.flatnonzero(first_rows(others.normalized) == np.arange(len(others)))
        other_words = [others.words[i] for i in other_indices]
    pairs = near_pairs(words, other_words, similarity)
    return NearPairs(indices[pairs.first], other_indices[pairs.second], pairs.similarity)


def _examples(near: "NearPairs", rows: Rows, others: Rows, limit: int) -> list[dict[str, Any]]:
    order = np.argsort(-near.similarity, kind="stable")[:limit]
    return [
        {
            "first": others.row(int(near.second[k])),
            "second": rows.row(int(near.first[k])),
            "similarity": round(float(near.similarity[k]), 3),
        }
        for k in order
    ]


def contradictions(splits: Sequence[Rows], regression: bool, examples: int) -> dict[str, Any]:
    """Find rows with the same normalized text and different labels, over all splits with labels.

    Regression targets differ if they are apart by more than a fifth of the range of targets. The
    range is that of the split with the largest range.
    """
    contradicting = _contradicting(splits, regression)
    return {
        "texts": len(contradicting),
        "rows": sum(len(members) for members in contradicting),
        "examples": [
            [{**rows.row(i), "label": rows.labels[i].tolist()} for rows, i in members]
            for members in contradicting[:examples]
        ],
    }


def _contradicting(splits: Sequence[Rows], regression: bool) -> list[list[tuple[Rows, int]]]:
    labeled = [rows for rows in splits if rows.labeled]
    groups: dict[Hashable, list[tuple[Rows, int]]] = {}
    for rows in labeled:
        for i in np.flatnonzero(rows.has_label).tolist():
            groups.setdefault(rows.normalized[i], []).append((rows, i))
    limit = 0.0
    if regression:
        ranges = [float(np.ptp(rows.labels[rows.has_label])) for rows in labeled]
        limit = 0.2 * max(ranges, default=0.0)
    contradicting = []
    for members in groups.values():
        if len(members) > 1:
            labels = np.asarray([rows.labels[i] for rows, i in members], np.float64)
            if (np.ptp(labels, axis=0) > limit).any():
                contradicting.append(members)
    return contradicting


def faulty_rows(
    train: Rows, others: Sequence[Rows], *, regression: bool
) -> dict[str, NDArray[np.bool_]]:
    """Return masks of rows to leave out of a cleaned copy of `train`, by reason; shape [rows]."""
    groups = _contradicting([train], regression)
    contradicting = [i for group in groups for _, i in group]
    position = np.arange(len(train))
    return {
        "with an empty text": np.array([not all(map(str.strip, t)) for t in train.exact], bool),
        "without a label": ~train.has_label,
        "that occur in another split": np.any(
            [matches(train.normalized, rows.normalized) >= 0 for rows in others]
            or [np.zeros(len(train), bool)],
            axis=0,
        ),
        "with contradicting labels": np.isin(position, contradicting),
        "that repeat an earlier row": first_rows(train.normalized) != position,
    }


@dataclass(frozen=True)
class NearPairs:
    """Pairs of rows (first, second) and their similarity; three arrays of shape [pairs]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]


def near_pairs(
    words: Sequence[Sequence[str]], others: Sequence[Sequence[str]] | None, similarity: float
) -> NearPairs:
    """Find all pairs (row of `words`, row of `others`) of Jaccard similarity `similarity` or more.

    Without `others`, pairs are formed within `words`, each pair once with first > second. Rows
    are compared as bags of words, repeats included. Rows without words form no pair.
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
    """Number the repeats of a word, so that a bag of words becomes a set."""
    if len(set(words)) == len(words):
        return list(words)
    count: Counter[str] = Counter()
    numbered = []
    for word in words:
        numbered.append(f"{word} {count[word]}" if count[word] else word)
        count[word] += 1
    return numbered


def _rarest_first(*sides: Sequence[Sequence[str]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for side in sides:
        for row in side:
            counts.update(row)
    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    return {word: i for i, (word, _) in enumerate(ranked)}


class _Sets:
    """Sparse 0/1 matrices [rows, words], rarest word first, of whole rows and of their prefixes."""

    def __init__(self, rows: Sequence[Sequence[str]], order: dict[str, int], t: float) -> None:
        from scipy.sparse import csr_matrix

        ids = [sorted(order[word] for word in row) for row in rows]
        self.sizes = np.fromiter(map(len, ids), np.int64, len(ids))
        # At least t n of n words are shared, so at least one of the n - ceil(t n) + 1 rarest is.
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


def _candidates(
    a: _Sets, b: _Sets, t: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (rows of `a`, rows of `b`) of pairs that can reach similarity `t`, in bounded parts."""
    transposed = b.prefix.T.tocsr()
    frequencies = np.asarray(b.prefix.sum(axis=0)).ravel()
    work = np.asarray(a.prefix @ frequencies).ravel()  # candidate pairs of each row of a
    ends = np.searchsorted(
        np.cumsum(work), np.arange(1, work.sum() // _CANDIDATES_AT_ONCE + 2) * _CANDIDATES_AT_ONCE
    )
    start = 0
    for end in [*np.unique(ends), len(work)]:
        stop = min(int(end) + 1, len(work))
        if stop <= start:
            continue
        common = (a.prefix[start:stop] @ transposed).tocoo()
        first, second = common.row.astype(np.int64) + start, common.col.astype(np.int64)
        # After the prefix that ends first, its row has needed - 1 words: no more can be shared.
        beyond = np.where(a.last[first] <= b.last[second], a.needed[first], b.needed[second]) - 1
        shared = np.ceil(t / (1 + t) * (a.sizes[first] + b.sizes[second]) - 1e-9)
        near = common.data + beyond >= shared
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
