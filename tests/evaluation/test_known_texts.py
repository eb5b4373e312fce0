"""Only a file that is most likely the run's own is taken for it; common texts are counted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainyard.data.held_out import text_hashes
from trainyard.data.splits import Split
from trainyard.data.text_sketch import TextSketch
from trainyard.errors import UserError
from trainyard.evaluation.comparison import selection_of
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.inputs import EvaluatedModel
from trainyard.evaluation.known_texts import KnownTexts, known_texts
from trainyard.storage.folder import RunFolder


def split_with(sketch: TextSketch) -> Split:
    split = Split("validation", "", lambda: iter(()))
    vars(split)["texts"] = sketch
    return split


def found_in(split: TextSketch, **sketches: TextSketch) -> KnownTexts | None:
    encoded = {name: sketch.encoded() for name, sketch in sketches.items()}
    record: dict[str, Any] = {"config": {}, "text_sketches": encoded}
    return known_texts(RunFolder(Path()), record, split_with(split), Path())


def utterances(rng: np.random.Generator, rows: int, distinct: int = 3_000) -> TextSketch:
    """Rows drawn independently from common texts, as users of an assistant write them (Zipf)."""
    weights = 1 / np.arange(1, distinct + 1)
    drawn = rng.choice(distinct, rows, p=weights / weights.sum())
    return TextSketch().with_hashes(text_hashes([f"utterance {n}" for n in drawn]))


def hashes(rng: np.random.Generator, number: int) -> NDArray[np.uint64]:
    return rng.integers(2**64, size=number, dtype=np.uint64)


@pytest.mark.parametrize("names", [("train", "dev"), ("dev", "train")])
def test_the_training_split_is_found_by_its_name(names: tuple[str, str]) -> None:
    """A tool that sorts run.json does not turn the validation split into it."""
    rng = np.random.default_rng(0)
    sketches = {name: TextSketch().with_hashes(hashes(rng, 50)) for name in names}
    found = {name: found_in(sketch, **sketches) for name, sketch in sketches.items()}
    assert found["train"] is not None
    assert found["dev"] is not None
    assert (found["train"].role, found["dev"].role) == ("trained", "selection")
    assert found["dev"].splits == {"dev"}


def test_sketches_without_the_training_split_are_refused() -> None:
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        found_in(TextSketch(), dev=TextSketch())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [100, 1_000, 2_000, 20_000])
@pytest.mark.parametrize("distinct", [100, 3_000])
def test_fresh_rows_of_common_texts_are_not_taken_for_those_of_the_run(
    seed: int, rows: int, distinct: int
) -> None:
    rng = np.random.default_rng(seed)
    train, held, fresh = (utterances(rng, n, distinct) for n in (20_000, 2_000, rows))
    found = found_in(fresh, train=train, validation=held)
    assert found is not None
    assert found.role == "partly"


def test_a_split_of_common_texts_is_recognized_if_it_has_most_of_them() -> None:
    rng = np.random.default_rng(0)
    train, held = utterances(rng, 4_000), utterances(rng, 400)
    again = TextSketch(np.delete(train.hashes, 5))
    for split, role in ((again, "trained"), (TextSketch(held.hashes[1:]), "selection")):
        found = found_in(split, train=train, validation=held)
        assert found is not None
        assert found.role == role


def test_rows_drawn_from_the_training_split_are_counted_only() -> None:
    rng = np.random.default_rng(0)
    train = hashes(rng, 5_000)
    held = TextSketch().with_hashes(hashes(rng, 500))
    part = TextSketch().with_hashes(train[:500])
    found = found_in(part, train=TextSketch().with_hashes(train), validation=held)
    assert found is not None
    assert (found.role, found.overlap.share) == ("partly", 1.0)


def test_without_a_second_split_nearly_all_texts_must_be_the_same() -> None:
    rng = np.random.default_rng(0)
    train, more = hashes(rng, 200), hashes(rng, 40)
    for kept, role in ((170, "partly"), (190, "trained")):
        split = TextSketch().with_hashes(np.concatenate([train[:kept], more[: 200 - kept]]))
        found = found_in(split, train=TextSketch().with_hashes(train))
        assert found is not None
        assert found.role == role


def test_the_share_of_few_texts_is_not_reported(tmp_path: Path) -> None:
    """Of 1,000 rows, only those with the smallest hashes are compared with a million others."""
    rng = np.random.default_rng(0)
    smallest = np.arange(1, 1_001, dtype=np.uint64) << np.uint64(44)  # of a million texts
    train, held = TextSketch(smallest), hashes(rng, 2_000)
    chosen_by = TextSketch().with_hashes(held)
    mixed = np.concatenate([held[:600], hashes(rng, 1_397), smallest[:3]])
    found = found_in(TextSketch().with_hashes(mixed), train=train, validation=chosen_by)
    assert found is not None
    assert found.overlap.is_reliable
    assert found.overlap.share == pytest.approx(0.3, abs=0.05)
    fresh = TextSketch().with_hashes(np.concatenate([hashes(rng, 998), smallest[:2]]))
    (tmp_path / "model").mkdir()
    sketches = {"train": train.encoded(), "validation": chosen_by.encoded()}
    config = {"train_file": "train.csv", "dataset_name": "imdb"}
    (tmp_path / "run.json").write_text(json.dumps({"config": config, "text_sketches": sketches}))
    model = EvaluatedModel(
        name="A", path=str(tmp_path / "model"), task="own", labels=("a", "b"), problem_type=None,
        max_length=None,
    )  # fmt: skip
    evaluation = EvalConfig(model_name_or_path="A", validation_file="rows.csv")
    selection = selection_of(model, evaluation, "own", split_with(fresh), tmp_path)
    assert selection.kind == "unknown"
    assert re.match(
        r"some texts of validation \(2 of only \d that could be compared\) are also among those that "
        "trained or chose A",
        selection.sentence,
    )
