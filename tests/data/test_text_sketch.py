"""Sketches of texts: flat memory, the same for any order and batches, exact for small splits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.data.text_sketch import SKETCH_SIZE, TextSketch, sketch_of
from trainyard.data.tokenize import prepare, stored_sketch
from trainyard.models.build import build_tokenizer


def drawn(number: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(2**64, size=number, dtype=np.uint64)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5_000), st.integers(1, 2_000), st.integers(0, 5))
def test_a_sketch_holds_the_smallest_hashes_of_any_batches(
    number: int, batch: int, seed: int
) -> None:
    hashes = np.repeat(drawn(number, seed), 2)
    np.random.default_rng(seed).shuffle(hashes)
    found = TextSketch()
    for start in range(0, len(hashes), batch):
        found = found.with_hashes(hashes[start : start + batch])
        assert len(found.hashes) <= SKETCH_SIZE
    assert found.hashes.tolist() == sorted(set(hashes.tolist()))[:SKETCH_SIZE]
    assert TextSketch.decoded(found.encoded()).hashes.tolist() == found.hashes.tolist()


@pytest.mark.parametrize(("rows", "others"), [(400, 400), (400, 20_000), (50_000, 50_000)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_equal_texts_is_estimated(rows: int, others: int, share: float) -> None:
    shared = int(rows * share)
    ours, theirs = drawn(rows), np.concatenate([drawn(rows)[:shared], drawn(others - shared, 1)])
    found = TextSketch().with_hashes(ours).overlap(TextSketch().with_hashes(theirs))
    assert found.is_reliable
    assert found.exact == (others < SKETCH_SIZE)
    assert found.share == pytest.approx(share, abs=0 if share in (0, 1) else 0.2)
    if found.exact:
        assert (found.compared, found.shared) == (rows, shared)


def test_few_texts_of_a_large_split_are_not_decided_by() -> None:
    small, large = TextSketch().with_hashes(drawn(50)), TextSketch().with_hashes(drawn(100_000))
    found = small.overlap(large)
    assert found.compared < 10
    assert not found.is_reliable
    assert not found.exact
    assert TextSketch().overlap(large).share == 0.0


def test_texts_are_compared_as_held_out_rows_are() -> None:
    def of(*texts: str) -> TextSketch:
        return sketch_of(pa.record_batch({"text": [text], "label": [0]}) for text in texts)

    found = of("Caf\u00e9  au lait", "tea").overlap(of("TEA", "cafe\u0301 AU\tlait ", "water"))
    assert (found.compared, found.shared, found.exact) == (2, 2, True)
    pair = pa.record_batch({"text": ["tea"], "text_pair": ["cup"], "label": [0]})
    assert sketch_of([pair]).overlap(of("tea", "cup", "tea cup")).shared == 0


@pytest.mark.parametrize("text", ["*", "AAAA", "A", 7])
def test_a_damaged_sketch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Base64|buffer size"):
        TextSketch.decoded(text)


def test_tokenization_keeps_the_sketch_of_each_split_that_is_not_set_aside(
    tiny_model: Path, task_data: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        task="mrpc",
        data_dir=str(task_data),
        model_name_or_path=str(tiny_model),
        max_length=32,
        test_share=0.5,
    )
    splits, tokenizer = find_splits(config), build_tokenizer(config)
    expected = {split.name: split.texts.encoded() for split in splits.splits[:2]}
    set_aside = replace(splits.splits[2], batches=lambda: pytest.fail("it reads the rows again"))
    found = prepare(splits, tokenizer, config, tmp_path)
    assert list(found.texts) == ["train", "validation"]
    assert found.texts == expected
    assert stored_sketch(set_aside, tmp_path).hashes.size  # for its evaluations
    table = found.folders["train"] / "table.json"
    built = sorted(path.name for path in table.parent.iterdir())
    info = json.loads(table.read_text())
    assert info.pop("texts") == expected["train"]
    table.write_text(json.dumps(info))  # as earlier versions did
    for split in splits.splits[:2]:
        (tmp_path / f"{split.digest}.texts").unlink()
    fresh = replace(splits, splits=find_splits(config).splits)
    assert prepare(fresh, tokenizer, config, tmp_path).texts == expected
    for split in splits.splits[:2]:
        unread = replace(split, batches=lambda: pytest.fail("it reads the rows again"))
        assert stored_sketch(unread, tmp_path).encoded() == expected[split.name]
    stored = [replace(split, batches=lambda: pytest.fail("again")) for split in fresh.splits]
    assert prepare(replace(splits, splits=stored), tokenizer, config, tmp_path).texts == expected
    assert sorted(path.name for path in table.parent.iterdir()) == built
