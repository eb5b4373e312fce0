"""Held-out rows: a tenth, complete, no text on both sides, no class without training rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.data.held_out import by_class, by_text, text_hashes
from trainyard.errors import UserError

NO_TEXTS = np.zeros(0, np.uint64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=200), st.integers(0, 5))
def test_version_1_is_stratified_and_complete(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    if np.bincount(array).max() < 2:
        with pytest.raises(UserError, match="no label has two rows"):
            by_class(array, NO_TEXTS, 0.1, seed)
        return
    train, validation = by_class(array, NO_TEXTS, 0.1, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        assert (array[train] == label).sum() >= 1
        expected = min(max(round(count * 0.1), 1), count - 1)
        assert (array[validation] == label).sum() == expected
    again = by_class(array, NO_TEXTS, 0.1, seed)
    assert np.array_equal(train, again[0])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), min_size=2, max_size=300),
    st.integers(0, 5),
)
def test_version_2_is_complete_and_shares_no_text(rows: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([label for label, _ in rows])
    texts = np.array([text for _, text in rows], np.uint64)
    try:
        train, validation = by_text(labels, texts, 0.1, seed)
    except UserError as error:
        assert "every text is the only one of some label" in str(error)  # noqa: PT017
        alone = [set(texts[labels == label]) for label in set(labels)]
        assert all({text} in alone for text in set(texts))
        return
    assert sorted([*train, *validation]) == list(range(len(rows)))
    assert len(validation)
    assert not set(texts[train]) & set(texts[validation])
    assert set(labels[train]) == set(labels)
    again = by_text(labels, texts, 0.1, seed)
    assert np.array_equal(validation, again[1])


@pytest.mark.parametrize("classes", [2, 30, 1200])
def test_version_2_holds_out_a_tenth_however_small_the_classes(classes: int) -> None:
    """Version 1 held out one row of each of 1,200 classes of three rows: a third."""
    labels = np.arange(3600) % classes
    _, validation = by_text(labels, np.arange(3600, dtype=np.uint64), 0.1, 0)
    assert abs(len(validation) - 360) <= 1
    counts = np.bincount(labels[validation], minlength=classes)
    assert counts.max() - counts.min() <= 1 + 3600 // classes // 100
    assert len(by_class(labels, NO_TEXTS, 0.1, 0)[1]) == (1200 if classes == 1200 else 360)


def test_a_text_that_is_most_of_the_rows_does_not_become_the_validation_set() -> None:
    texts = np.array([7] * 500 + [*range(100, 600)], np.uint64)
    _, validation = by_text(np.arange(1000) % 2, texts, 0.1, 3)
    assert 7 not in texts[validation]
    assert 40 <= len(validation) <= 110


def test_texts_are_equal_but_for_case_spaces_and_unicode_form() -> None:
    def hashes(*texts: str) -> list[int]:
        found: list[int] = text_hashes(texts).tolist()
        return found

    first, *others = hashes("Caf\u00e9  au lait", "cafe\u0301 AU\tlait ", "caf\u00e9 au lait!")
    assert first == others[0] != others[1]
