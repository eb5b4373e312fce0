"""A task's own columns as they come: what is wrong with them is told with file and row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
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
