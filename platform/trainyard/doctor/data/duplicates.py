"""Rows that occur twice: to the letter, but for case and spacing, or nearly."""

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.join import NearPairs, near_pairs
from trainyard.doctor.data.rows import Rows


def repeated(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Row of the first occurrence of each row's key; shape [rows]."""
    first: dict[Hashable, int] = {}
    return np.fromiter(
        (first.setdefault(key, i) for i, key in enumerate(keys)), np.int64, len(keys)
    )


def found_in(keys: Sequence[Hashable], others: Sequence[Hashable]) -> NDArray[np.int64]:
    """For each row the first row of `others` with the same key, else -1; shape [rows]."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(others):
        first.setdefault(key, i)
    return np.fromiter((first.get(key, -1) for key in keys), np.int64, len(keys))


def duplicates(splits: Sequence[Rows], similarity: float, examples: int) -> dict[str, Any]:
    """Duplicates inside each split and between each two, with examples.

    `exact` and `normalized` count rows that repeat an earlier row (inside), or rows of the second
    split that occur in the first (between). `near` counts rows that have a near duplicate which is
    not equal when normalized (of the second split, between: rows that do not occur in the first);
    every pair of different rows of at least `similarity` is found, see `near_pairs`.
    """
    inside = {rows.name: _inside(rows, similarity, examples) for rows in splits}
    between = [
        _between(first, second, similarity, examples) for first, second in combinations(splits, 2)
    ]
    return {"inside": inside, "between": between}


def _inside(rows: Rows, similarity: float, examples: int) -> dict[str, Any]:
    position = np.arange(len(rows))
    exact, normalized = repeated(rows.exact), repeated(rows.normalized)
    near = _near(rows, np.flatnonzero(normalized == position), None, similarity)
    again = np.flatnonzero(normalized != position)
    return {
        "rows": len(rows),
        "exact": int((exact != position).sum()),
        "normalized": len(again),
        "near": int(np.isin(normalized, [near.first, near.second]).sum()),
        "examples": [
            *({"first": rows.row(int(normalized[i])), "second": rows.row(int(i)), "similarity": 1.0}
              for i in again[:examples]),
            *_examples(near, rows, rows, examples),
        ],
    }  # fmt: skip


def _between(first: Rows, second: Rows, similarity: float, examples: int) -> dict[str, Any]:
    exact = found_in(second.exact, first.exact)
    normalized = found_in(second.normalized, first.normalized)
    again = repeated(second.normalized)
    different = np.flatnonzero((again == np.arange(len(second))) & (normalized < 0))
    near = _near(second, different, first, similarity)
    leaked = np.flatnonzero(normalized >= 0)
    return {
        "first": first.name,
        "second": second.name,
        "rows": len(second),
        "exact": int((exact >= 0).sum()),
        "normalized": len(leaked),
        "near": int(np.isin(again, near.first).sum()),
        "examples": [
            *({"first": first.row(int(normalized[i])), "second": second.row(int(i)),
               "similarity": 1.0} for i in leaked[:examples]),
            *_examples(near, second, first, examples),
        ],
    }  # fmt: skip


def _near(
    rows: Rows, places: NDArray[np.int64], others: Rows | None, similarity: float
) -> NearPairs:
    """`near_pairs` of the rows at `places`, all different; of `others` each text counts once too.

    Of n equal rows, all n² pairs would be found.
    """
    words, other_words, other_places = [rows.words[i] for i in places], None, places
    if others is not None:
        other_places = np.flatnonzero(repeated(others.normalized) == np.arange(len(others)))
        other_words = [others.words[i] for i in other_places]
    found = near_pairs(words, other_words, similarity)
    return NearPairs(places[found.first], other_places[found.second], found.similarity)


def _examples(near: NearPairs, rows: Rows, others: Rows, limit: int) -> list[dict[str, Any]]:
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
    """Rows with the same text (normalized) and different labels, over all rows with labels.

    Of a regression, labels differ when they are more than a fifth of the label's range apart.
    """
    labeled = [rows for rows in splits if rows.labeled]
    groups: dict[Hashable, list[tuple[Rows, int]]] = {}
    for rows in labeled:
        for i in np.flatnonzero(rows.known).tolist():
            groups.setdefault(rows.normalized[i], []).append((rows, i))
    limit = 0.0
    if regression:
        ranges = [float(np.ptp(rows.labels[rows.known])) for rows in labeled]
        limit = 0.2 * max(ranges, default=0.0)
    found = []
    for members in groups.values():
        if len(members) > 1:
            labels = np.asarray([rows.labels[i] for rows, i in members], np.float64)
            if (np.ptp(labels, axis=0) > limit).any():
                found.append(members)
    return {
        "texts": len(found),
        "rows": sum(len(members) for members in found),
        "examples": [
            [{**rows.row(i), "label": rows.labels[i].tolist()} for rows, i in members]
            for members in found[:examples]
        ],
    }
