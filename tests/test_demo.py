import itertools
import re
import tracemalloc

import numpy as np
import pytest

from trainyard import demo

Rows = list[tuple[str, str, int]]


@pytest.fixture(scope="module")
def rows() -> dict[str, Rows]:
    return {split: list(demo.generate(split, 2000)) for split in ("train", "validation", "test")}


def test_a_row_does_not_depend_on_how_many_are_asked_for(rows: dict[str, Rows]) -> None:
    assert list(demo.generate("train", 50)) == rows["train"][:50]
    assert list(demo.generate("train", 50, seed=1)) != rows["train"][:50]
    assert rows["validation"] != rows["test"]


def test_labels_are_balanced_and_pairs_are_no_copies(rows: dict[str, Rows]) -> None:
    for found in rows.values():
        assert 0.45 < np.mean([label for _, _, label in found]) < 0.55
        assert all(first != second for first, second, _ in found)


def test_people_things_and_places_of_validation_are_new(rows: dict[str, Rows]) -> None:
    def words(found: Rows) -> set[str]:
        return {w.lower() for a, b, _ in found for w in re.findall(r"\w+", f"{a} {b}")}

    held_out = {word.lower() for text in demo._HELD_OUT.values() for word in text.split()}
    assert len(held_out) > 30
    assert not words(rows["train"]) & held_out
    for split in ("validation", "test"):
        new = words(rows[split]) - words(rows["train"])
        assert new == held_out & words(rows[split])
        assert len(new) > 30


def test_neither_shared_words_nor_one_sentence_gives_the_answer(rows: dict[str, Rows]) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def overlap(found: Rows) -> np.ndarray:
        sets = [(set(a.lower().split()), set(b.lower().split())) for a, b, _ in found]
        return np.array([[len(a & b) / len(a | b), len(a & b), len(a) - len(b)] for a, b in sets])

    def labels(found: Rows) -> list[int]:
        return [label for _, _, label in found]

    train, validation = rows["train"], rows["validation"]
    by_overlap = LogisticRegression().fit(overlap(train), labels(train))
    assert by_overlap.score(overlap(validation), labels(validation)) < 0.65
    counts = CountVectorizer().fit([b for _, b, _ in train])
    second = [[b for _, b, _ in found] for found in (train, validation)]
    by_second = LogisticRegression(max_iter=500).fit(counts.transform(second[0]), labels(train))
    assert by_second.score(counts.transform(second[1]), labels(validation)) < 0.58


def test_a_million_rows_would_stream_in_flat_memory() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in itertools.islice(demo.generate("train", count), count):
            pass
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    assert peak(20_000) < peak(1_000) + 100_000


def test_the_examples_are_unseen(rows: dict[str, Rows]) -> None:
    seen = {pair[:2] for found in rows.values() for pair in found}
    assert not seen & {pair[:2] for pair in demo.EXAMPLES}
    assert sorted(label for _, _, label in demo.EXAMPLES) == [0, 0, 1, 1]
