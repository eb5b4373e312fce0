"""The rows of every split in memory, test splits too, and their words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import intern
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data import NO_LABEL, Split, Splits, find_splits, normalize_text, split_rows
from trainyard.flags import DataFlags
from trainyard.tasks import Task, get_task

if TYPE_CHECKING:
    import pyarrow as pa

# Thai to Tibetan, Burmese, Khmer, kana, Chinese characters: written without spaces between words.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Rows:
    """One split: texts of shape [columns][rows], labels of shape [rows] or [rows, labels]."""

    name: str
    texts: tuple[Sequence[str], ...]
    labels: NDArray[Any]
    withholds: bool = True
    """Whether -1 is no label, as in GLUE, and not a target."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """The rows whose label is known: GLUE withholds those of most test splits; shape [rows]."""
        if self.labels.ndim == 2 or not self.withholds:
            return np.ones(len(self), bool)
        return np.asarray(self.labels != NO_LABEL)

    @property
    def labeled(self) -> bool:
        """Whether any label is known."""
        return bool(self.known.any())

    @cached_property
    def exact(self) -> list[tuple[str, ...]]:
        """What makes two rows the same to the letter."""
        return list(zip(*self.texts, strict=True))

    @cached_property
    def normalized(self) -> list[tuple[str, ...]]:
        """What makes two rows the same but for case, spacing and Unicode forms."""
        columns = [[normalize_text(text) for text in column] for column in self.texts]
        return list(zip(*columns, strict=True))

    @cached_property
    def words(self) -> list[list[str]]:
        """Words and punctuation marks of each row, each marked with the text that it is from.

        Where words are written without spaces between them, each character counts as one.
        Interned: of ten million words there are only as many strings as there are different ones.
        """
        columns = [
            [[intern(f"{i}{word}") for word in _WORD.findall(text)] for text in column]
            for i, column in enumerate(zip(*self.normalized, strict=True))
        ]
        return [[word for part in parts for word in part] for parts in zip(*columns, strict=True)]

    def row(self, index: int) -> dict[str, Any]:
        """A row as a report shows it, without its label."""
        named = zip(("text", "text_pair"), self.texts, strict=False)
        return {"split": self.name, "row": index, **{name: column[index] for name, column in named}}


def all_splits(config: DataFlags) -> tuple[Splits, list[str]]:
    """Every split of the data, those without labels too, and the names of those that are absent."""
    if config.train_file:
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
    """All rows of a split; there may be none."""
    import pyarrow as pa

    batches = list(split.batches())
    table = pa.Table.from_batches(batches, None if batches else _schema(task))
    label = table["label"].combine_chunks()
    if pa.types.is_list(label.type):
        labels = label.flatten().to_numpy().reshape(len(label), task.num_labels)
    else:
        labels = label.to_numpy()
    texts = tuple(table[name].to_pylist() for name in _text_names(task))
    # Whoever brings files of their own labels every row, and may have a target of -1.
    return Rows(split.name, texts, np.asarray(labels), withholds=task.hub_path is not None)


def _text_names(task: Task) -> tuple[str, ...]:
    return ("text", "text_pair")[: len(task.text_columns)]


def _schema(task: Task) -> "pa.Schema":
    """Of canonical rows, for a split that has none to tell."""
    import pyarrow as pa

    label = {
        "single_label_classification": pa.int64(),
        "regression": pa.float32(),
        "multi_label_classification": pa.list_(pa.float32()),
    }
    texts = [(name, pa.string()) for name in _text_names(task)]
    return pa.schema([*texts, ("label", label[task.problem_type])])
