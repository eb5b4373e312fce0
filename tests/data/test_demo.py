import hashlib
import json
import re
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from trainyard.config import TrainConfig
from trainyard.data import demo, find_splits

Rows = list[tuple[str, str, int]]
SIZES = demo.DEFAULT_ROWS
ROWS_OF_VERSION = {"2ebf2ef2": "f2553940f8c313c842797b7379d9799e9112d414286b6cbc7b18561cf5e1fe9f"}

NAMING = r"\b(?:the|(?<!came )in|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) (\w+)"
IN_TIMES = {
    "autumn",
    "december",
    "fall",
    "first",
    "last",
    "middle",
    "month",
    "night",
    "the",
    "weeks",
    "year",
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Rows]:
    return {split: list(demo.generate(split, 5000)) for split in SIZES}


def test_the_version_stands_for_these_rows(rows: dict[str, Rows]) -> None:
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert {demo.VERSION[:8]: digest} == ROWS_OF_VERSION, "other rows need another demo.VERSION"


def words(sentence: str) -> list[str]:
    return re.findall(r"\w+", sentence.lower())


def vocabulary(found: Rows) -> set[str]:
    return {word for first, second, _ in found for word in words(f"{first} {second}")}


def labels(found: Rows) -> list[int]:
    return [label for _, _, label in found]


@pytest.mark.parametrize("split", SIZES)
def test_a_row_depends_on_split_seed_and_index_alone(split: str, rows: dict[str, Rows]) -> None:
    for count in (0, 1, 50, 4096, 4097, 5000):  # blocks are of 4096 rows
        assert list(demo.generate(split, count)) == rows[split][:count]
    assert list(demo.generate(split, 50, seed=1)) != rows[split][:50]


def test_hardly_any_pair_occurs_twice(rows: dict[str, Rows]) -> None:
    pairs = [pair[:2] for split, count in SIZES.items() for pair in rows[split][:count]]
    assert len(set(pairs)) > 0.99 * len(pairs)


def test_every_prefix_is_balanced_and_no_pair_is_a_copy(rows: dict[str, Rows]) -> None:
    for found in rows.values():
        ones = np.cumsum(labels(found))
        assert np.abs(2 * ones - np.arange(1, 5001)).max() <= 1
        assert {label for first, _, label in found[::2] if first} == {0, 1}
        assert all(first != second for first, second, _ in found)


def nouns(found: Rows) -> set[str]:
    text = " ".join(f"{first} {second}" for first, second, _ in found).lower()
    return set(re.findall(NAMING, text)) - IN_TIMES


def test_people_things_places_and_events_of_validation_are_never_trained_on(
    rows: dict[str, Rows],
) -> None:
    trained = nouns(rows["train"])
    assert trained > {"nurse", "lamps", "paris", "train"}
    for split in ("validation", "test"):
        held_out = nouns(rows[split])
        assert held_out > {"engineer", "tables", "rome", "bus"}
        assert not trained & held_out
        assert len(trained) > 50
        assert len(held_out) > 45


def test_sentences_are_short_and_long_and_well_formed(rows: dict[str, Rows]) -> None:
    sentences = [sentence for first, second, _ in rows["train"] for sentence in (first, second)]
    lengths = [len(words(sentence)) for sentence in sentences]
    assert min(lengths) == 5
    assert 20 <= max(lengths) <= 30
    assert all(re.fullmatch(r"[A-Z][A-Za-z]*(,? [A-Za-z]+)+\.", s) for s in sentences)


@pytest.mark.parametrize(
    ("change", "first", "second"),
    [
        ("roles", r"The (\w+) admired the (\w+)\.", r"The {1} admired the {0}."),
        ("negation", r"The (\w+) admired the (\w+)\.", r"The {0} did not admire the {1}."),
        ("opposite", r"The (\w+) admired the (\w+)\.", r"The {0} despised the {1}."),
    ],
)
def test_one_change_makes_a_pair_not_equivalent(change: str, first: str, second: str) -> None:
    del change
    found = [
        label
        for one, two, label in demo.generate("train", 40_000)
        if (match := re.fullmatch(first, one)) and second.format(*match.groups()) == two
    ]
    assert found
    assert not any(found)


def test_passive_and_synonym_keep_a_pair_equivalent() -> None:
    found = [
        label
        for one, two, label in demo.generate("train", 40_000)
        if (match := re.fullmatch(r"The (\w+) admired the (\w+)\.", one))
        and two == "The {1} was respected by the {0}.".format(*match.groups())
    ]
    assert found
    assert all(found)


def score(features: Any, train: Rows, validation: Rows) -> float:
    """Accuracy on validation rows of a logistic regression on features of the rows."""
    model = LogisticRegression(max_iter=1000).fit(features(train), labels(train))
    return float(model.score(features(validation), labels(validation)))


def test_counting_shared_words_does_not_solve_it(rows: dict[str, Rows]) -> None:
    def overlap(first: Sequence[str], second: Sequence[str]) -> list[float]:
        a, b = set(first), set(second)
        sizes = [len(a & b), len(a - b), len(b - a), len(first), len(second)]
        return [len(a & b) / len(a | b), *sizes, abs(len(first) - len(second))]

    def features(found: Rows) -> Any:
        return np.array([overlap(words(a), words(b)) for a, b, _ in found])

    assert score(features, rows["train"], rows["validation"]) < 0.65


def test_the_second_sentence_alone_says_nothing(rows: dict[str, Rows]) -> None:
    counts = CountVectorizer().fit([second for _, second, _ in rows["train"]])

    def features(found: Rows) -> Any:
        return counts.transform([second for _, second, _ in found])

    assert score(features, rows["train"], rows["validation"]) < 0.58
    known_words = rows["train"][:2500], rows["train"][2500:]
    assert score(features, *known_words) < 0.58


def test_rows_stream_in_flat_memory() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in demo.generate("train", count):
            pass
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    assert peak(60_000) < 1.2 * peak(8192)


def test_examples_are_new_words_in_both_labels(rows: dict[str, Rows]) -> None:
    assert sorted(labels(list(demo.EXAMPLES))) == [0, 0, 1, 1]
    generated = vocabulary(rows["train"] + rows["validation"] + rows["test"])
    for first, second, _ in demo.EXAMPLES:
        assert set(words(first)) - generated
        assert set(words(second)) - generated


def test_a_longer_demo_is_generated_and_begins_like_the_usual_one() -> None:
    def train(**fields: Any) -> tuple[str, list[Any]]:
        split = find_splits(TrainConfig(task="demo", **fields)).splits[0]
        return split.fingerprint, [row for batch in split.batches() for row in batch.to_pylist()]

    name, usual = train()
    assert len(usual) == SIZES["train"]
    longer, rows = train(max_train_samples=3000)
    assert (len(rows), rows[: len(usual)]) == (3000, usual)
    assert longer != name
    assert train(max_train_samples=100)[1] == usual[:100]
