"""Rows that occur twice: to the letter, but for case and spacing, or nearly."""

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data_doctor.join import NearPairs, near_pairs
from trainyard.data_doctor.rows import Rows


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
    not equal when normalized; every pair of at least `similarity` is found, see `near_pairs`.
    """
    inside = {rows.name: _inside(rows, similarity, examples) for rows in splits}
    between = [
        _between(first, second, similarity, examples) for first, second in combinations(splits, 2)
    ]
    return {"inside": inside, "between": between}


def _inside(rows: Rows, similarity: float, examples: int) -> dict[str, Any]:
    position = np.arange(len(rows))
    exact, normalized = repeated(rows.exact), repeated(rows.normalized)
    near = near_pairs(rows.words, None, similarity)
    near = near.where(normalized[near.first] != normalized[near.second])
    again = np.flatnonzero(normalized != position)
    return {
        "rows": len(rows),
        "exact": int((exact != position).sum()),
        "normalized": len(again),
        "near": len(np.union1d(near.first, near.second)),
        "examples": [
            *({"first": rows.row(int(normalized[i])), "second": rows.row(int(i)), "similarity": 1.0}
              for i in again[:examples]),
            *_examples(near, rows, rows, examples),
        ],
    }  # fmt: skip


def _between(first: Rows, second: Rows, similarity: float, examples: int) -> dict[str, Any]:
    exact = found_in(second.exact, first.exact)
    normalized = found_in(second.normalized, first.normalized)
    near = near_pairs(second.words, first.words, similarity)
    near = near.where(normalized[near.first] < 0)
    leaked = np.flatnonzero(normalized >= 0)
    return {
        "first": first.name,
        "second": second.name,
        "rows": len(second),
        "exact": int((exact >= 0).sum()),
        "normalized": len(leaked),
        "near": len(np.unique(near.first)),
        "examples": [
            *({"first": first.row(int(normalized[i])), "second": second.row(int(i)),
               "similarity": 1.0} for i in leaked[:examples]),
            *_examples(near, second, first, examples),
        ],
    }  # fmt: skip


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
    """Rows with the same text (normalized) and different labels, over all splits with labels.

    Of a regression, labels differ when they are more than a fifth of the label's range apart.
    """
    labelled = [rows for rows in splits if rows.labelled]
    groups: dict[Hashable, list[tuple[Rows, int]]] = {}
    for rows in labelled:
        for i, key in enumerate(rows.normalized):
            groups.setdefault(key, []).append((rows, i))
    limit = 0.0
    if regression:
        limit = 0.2 * max((float(np.ptp(rows.labels)) for rows in labelled), default=0.0)
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
