"""Sparse word features of rows, the inputs of the doctor's linear models."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

DIMENSIONS = 1 << 20


def features(words: Sequence[Sequence[str]]) -> Any:
    """TF-IDF of words and pairs of neighbors; sparse, shape [rows, features], unit length.

    For a pair of texts, further features mark words of both texts, and of one text only. Features of a
    single row are left out, since they cannot generalize to other rows; none may remain.
    """
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    hashed = HashingVectorizer(
        analyzer=_grams, n_features=DIMENSIONS, alternate_sign=False, norm=None
    ).transform(words)
    rows_with = np.bincount(hashed.indices, minlength=DIMENSIONS)
    shared = hashed[:, rows_with > 1]
    return TfidfTransformer(sublinear_tf=True).fit_transform(shared) if shared.shape[1] else shared


def _grams(words: Sequence[str]) -> list[str]:
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    first = {word[1:] for word in words if word[0] == "0"}
    second = {word[1:] for word in words if word[0] == "1"}
    if not second:
        return [*words, *pairs]
    membership = [
        *(f"= {word}" for word in first & second),
        *(f"< {word}" for word in first - second),
        *(f"> {word}" for word in second - first),
    ]
    return [*words, *pairs, *membership]
