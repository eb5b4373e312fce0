"""Read all rows of every split into memory, test splits included; find words and faulty texts."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import intern
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import DataFlags
from trainyard.data import NO_LABEL, Split, Splits, find_splits, normalize_text, split_rows
from trainyard.tasks import Task, get_task

if TYPE_CHECKING:
    import pyarrow as pa

# Thai to Tibetan, Burmese, Khmer, kana, Chinese characters: scripts without spaces between words.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\ufeff\\ufffe]")

FAULTS: dict[str, Callable[[tuple[str, ...]], bool]] = {
    "empty": lambda texts: any(not text.strip() for text in texts),
    "same_text_twice": lambda texts: len(texts) == 2 and texts[0].strip() == texts[1].strip(),
    "control_characters": lambda texts: any(_CONTROL.search(text) for text in texts),
    "undecodable": lambda texts: any("\ufffd" in text for text in texts),
}
"""Predicates over the texts of a row; True means that the row has the fault."""


@dataclass(frozen=True)
class Rows:
    """Rows of a split: texts of shape [columns][rows], labels of shape [rows] or [rows, labels]."""

    name: str
    texts: tuple[Sequence[str], ...]
    labels: NDArray[Any]
    withholds: bool = True
    """True if the label -1 means a withheld label, as in GLUE; False if -1 is a target."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def has_label(self) -> NDArray[np.bool_]:
        """Mask of rows with a label, shape [rows]; GLUE withholds most labels of test splits."""
        if self.labels.ndim == 2 or not self.withholds:
            return np.ones(len(self), bool)
        return np.asarray(self.labels != NO_LABEL)

    @property
    def labeled(self) -> bool:
        return bool(self.has_label.any())

    @cached_property
    def exact(self) -> list[tuple[str, ...]]:
        return list(zip(*self.texts, strict=True))

    @cached_property
    def normalized(self) -> list[tuple[str, ...]]:
        """Normalized texts of each row: they ignore case, spacing and Unicode form."""
        columns = [[normalize_text(text) for text in column] for column in self.texts]
        return list(zip(*columns, strict=True))

    @cached_property
    def words(self) -> list[list[str]]:
        """Words and punctuation marks of each row, each after the index of its text ("0the").

        In scripts without spaces between words, each character is a word. Strings are interned, so
        equal words of all rows share one object.
        """
        columns = [
            [[intern(f"{i}{word}") for word in _WORD.findall(text)] for text in column]
            for i, column in enumerate(zip(*self.normalized, strict=True))
        ]
        return [[word for part in parts for word in part] for parts in zip(*columns, strict=True)]

    def row(self, index: int) -> dict[str, Any]:
        """Return the split, the index and the texts of a row, for the report."""
        named = zip(("text", "text_pair"), self.texts, strict=False)
        return {"split": self.name, "row": index, **{name: column[index] for name, column in named}}


def all_splits(config: DataFlags) -> tuple[Splits, list[str]]:
    """Return all splits of the data, labeled or not, and the names of absent test splits.

    Raises:
        UserError: The data cannot be read.
    """
    if config.is_own:
        return find_splits(config), []
    task = get_task(config.task)
    names = [*([task.train_split] if task.train_split else []), *task.evaluation_splits]
    absent = []
    for name in task.test_splits:
        if config.data_dir and split_rows(config, name) is None:
            absent.append(name)
        else:
            names.append(name)
    return find_splits(config, names, labeled=False), absent


def read(split: Split, task: Task) -> Rows:
    import pyarrow as pa

    batches = list(split.batches())
    table = pa.Table.from_batches(batches, None if batches else _schema(task))
    label = table["label"].combine_chunks()
    if pa.types.is_list(label.type):
        labels = label.flatten().to_numpy().reshape(len(label), task.num_labels)
    else:
        labels = label.to_numpy()
    texts = tuple(table[name].to_pylist() for name in _text_names(task))
    # Files of users have a label in every row, and -1 may be a target.
    return Rows(split.name, texts, np.asarray(labels), withholds=task.hub_path is not None)


def _text_names(task: Task) -> tuple[str, ...]:
    return ("text", "text_pair")[: len(task.text_columns)]


def _schema(task: Task) -> "pa.Schema":
    import pyarrow as pa

    label = {
        "single_label_classification": pa.int64(),
        "regression": pa.float32(),
        "multi_label_classification": pa.list_(pa.float32()),
    }
    texts = [(name, pa.string()) for name in _text_names(task)]
    return pa.schema([*texts, ("label", label[task.problem_type])])


def faulty_texts(splits: Sequence[Rows], examples: int) -> dict[str, Any]:
    """Count the rows with each of `FAULTS` in each split, with examples."""
    faults: dict[str, Any] = {}
    for rows in splits:
        faults[rows.name] = {}
        for name, is_faulty in FAULTS.items():
            hits = [i for i, texts in enumerate(rows.exact) if is_faulty(texts)]
            faults[rows.name][name] = {
                "rows": len(hits),
                "examples": [rows.row(i) for i in hits[:examples]],
            }
    return faults
