"""A task's own columns as they come: what is wrong with them is told with file and row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits, sample_rows
from trainyard.errors import UserError


def rows_of(folder: Path, task: str = "mrpc") -> int:
    """How many rows of the training split can be read."""
    splits = find_splits(TrainConfig(task=task, data_dir=str(folder))).splits
    return sum(batch.num_rows for batch in splits[0].batches())


def write(folder: Path, task: str = "mrpc", rows: int = 5000, **columns: Any) -> Path:
    """A training split (and a validation split) in which `columns` replace good ones."""
    good = {"sentence1": ["a"] * rows, "sentence2": ["b"] * rows, "label": [1] * rows}
    (folder / task).mkdir()
    for split in ("train", "validation"):
        pq.write_table(pa.table({**good, **columns}), folder / task / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    ("task", "name", "column", "sentence"),
    [
        ("mrpc", "label", ["1"] * 4999 + ["equivalent"],
         r"train\.parquet row 4999: 'label' is 'equivalent' \(string\), expected a class index"),
        ("mrpc", "label", [1.0] * 4998 + [0.5, 1.0],
         r"train\.parquet row 4998: 'label' is '0\.5' \(double\), expected a class index"),
        ("stsb", "label", ["x"] * 5000, r"row 0: 'label' is 'x' \(string\), expected a number"),
        ("mrpc", "sentence2", [b"b"] * 4097 + [b"\xff"] * 903,
         r"row 4097: 'sentence2' is .*\(binary\), expected text"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named_with_its_row(
    tmp_path: Path, task: str, name: str, column: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        rows_of(write(tmp_path, task, **{name: column}), task)


@pytest.mark.parametrize("column", ["sentence1", "sentence2", "label"])
def test_a_text_that_is_not_utf8_is_named_with_its_row(tmp_path: Path, column: str) -> None:
    buffers = pa.array([b"1"] * 4097 + [b"\xff"] * 903, pa.binary()).buffers()
    texts = pa.StringArray.from_buffers(5000, *buffers[1:])
    with pytest.raises(UserError, match=rf"train\.parquet row 4097: '{column}' is not UTF-8; dec"):
        rows_of(write(tmp_path, **{column: texts}))


def test_a_damaged_page_is_told_when_it_is_read(tmp_path: Path) -> None:
    """The footer is whole, so the file opens; what is in it is not."""
    texts = [str(n) for n in np.random.default_rng(0).integers(10**9, size=5000)]
    path = write(tmp_path, sentence1=texts) / "mrpc/train.parquet"
    assert rows_of(tmp_path) == 5000
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet cannot be read from row 0 on \("):
        rows_of(tmp_path)


def texts(config: TrainConfig) -> dict[str, list[str]]:
    """The texts of each split."""
    return {
        split.name: [text for batch in split.batches() for text in batch["text"].to_pylist()]
        for split in find_splits(config).splits
    }


def test_a_share_of_the_evaluation_rows_is_set_aside_the_same_ones_for_every_seed(
    tmp_path: Path,
) -> None:
    rows = [f"row {n}" for n in range(5000)]
    write(tmp_path, sentence1=rows, label=[int(n % 10 == 0) for n in range(5000)])
    config = TrainConfig(task="mrpc", data_dir=str(tmp_path), test_share=0.3)
    found = texts(config)
    assert found["train"] == rows
    assert (len(found["validation"]), len(found["validation_test"])) == (3500, 1500)
    assert sorted(found["validation"] + found["validation_test"]) == sorted(rows)
    rare = [text for text in found["validation_test"] if text.endswith("0")]
    assert len(rare) == 150  # of each class alike
    assert texts(replace(config, seed=7)) == found
    assert texts(replace(config, test_share=0)) == {"train": rows, "validation": rows}
    digests = {split.digest for split in find_splits(config).splits}
    assert (
        len(
            digests
            | {split.digest for split in find_splits(replace(config, test_share=0.4)).splits}
        )
        == 5
    )


def test_too_few_validation_rows_to_set_some_aside_are_told_as_such(tmp_path: Path) -> None:
    write(tmp_path, rows=2, label=[0, 1])
    with pytest.raises(UserError) as refused:
        texts(TrainConfig(task="mrpc", data_dir=str(tmp_path), test_share=0.5))
    assert str(refused.value) == (
        "no test rows can be set aside from 2 validation rows, because no label has two of them; "
        "give more validation rows, or set none aside: leave out --test-share, or give a sweep "
        "--confirm-seeds 0"
    )


def test_a_test_file_is_a_split_of_its_own(tmp_path: Path) -> None:
    for name in ("train", "held", "test"):
        lines = "".join(f"{name} {n},{'ab'[n % 2]}\n" for n in range(4))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines)
    config = TrainConfig(
        train_file=str(tmp_path / "train.csv"),
        validation_file=str(tmp_path / "held.csv"),
        test_file=str(tmp_path / "test.csv"),
    )
    assert {name: rows[0] for name, rows in texts(config).items()} == {
        "train": "train 0", "validation": "held 0", "test": "test 0",
    }  # fmt: skip
    (tmp_path / "test.csv").write_text("text,label\nx,c\n")
    with pytest.raises(UserError, match=r"test\.csv line 2.*'c'"):
        find_splits(config)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"test_file": "t.csv"}, "test_file describes your own data, but there is no train_file"),
        ({"test_share": 1.0}, "test_share is 1; it must be from 0 to below 1"),
        ({"train_file": "a.csv", "test_file": "t.csv", "test_share": 0.5}, "give one of them"),
    ],
)  # fmt: skip
def test_flags_of_rows_that_are_set_aside_are_checked(fields: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainConfig(**fields)
    assert TrainConfig(test_share=0.5).identity() != TrainConfig().identity()


def test_the_sample_rows_show_each_label_and_no_long_text(tmp_path: Path) -> None:
    rows = ["text,label", "train,a", "train,b"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    rows = ["text,label", *(f"a {i},a" for i in range(9)), f"{'b' * 501},b", "b 1,b", "b 2,b"]
    (tmp_path / "validation.csv").write_text("\n".join(rows))
    train, validation = str(tmp_path / "train.csv"), str(tmp_path / "validation.csv")
    config = TrainConfig(train_file=train, validation_file=validation)
    found = sample_rows(find_splits(config))
    assert [row["text"] for row in found] == ["a 0", "b 1", "a 1", "b 2", "a 2", "a 3"]
    assert [row["label"] for row in found] == ["a", "b", "a", "b", "a", "a"]
    write(tmp_path, "stsb", sentence1=["a"], sentence2=["b"], label=[2.5])
    (row,) = sample_rows(find_splits(TrainConfig(task="stsb", data_dir=str(tmp_path))))
    assert row == {"text": "a", "text_pair": "b", "label": 2.5}
