"""The rows of every split in memory, test splits too, and their words."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import intern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import TrainConfig
from trainyard.splits import NO_LABEL, Split, Splits, find_splits, split_rows
from trainyard.tasks import get_task

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Rows:
    """One split: texts of shape [columns][rows], labels of shape [rows] or [rows, labels]."""

    name: str
    texts: tuple[Sequence[str], ...]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether its labels are known: GLUE withholds those of most test splits."""
        return not bool((self.labels == NO_LABEL).all())

    @cached_property
    def exact(self) -> list[tuple[str, ...]]:
        """What makes two rows the same to the letter."""
        return list(zip(*self.texts, strict=True))

    @cached_property
    def normalized(self) -> list[tuple[str, ...]]:
        """What makes two rows the same but for case, spacing and Unicode forms."""
        columns = [[normalize(text) for text in column] for column in self.texts]
        return list(zip(*columns, strict=True))

    @cached_property
    def words(self) -> list[list[str]]:
        """Words and punctuation marks of each row, each marked with the text that it is from.

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


def normalize(text: str) -> str:
    """Unicode compatibility form, case folded, runs of white space as one space, none outside."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def all_splits(config: TrainConfig) -> tuple[Splits, list[str]]:
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
    return find_splits(config, names, labelled=False), absent


def read(split: Split) -> Rows:
    """All rows of a split."""
    import pyarrow as pa

    table = pa.Table.from_batches(list(split.batches()))
    names = [name for name in ("text", "text_pair") if name in table.column_names]
    label = table["label"].combine_chunks()
    if pa.types.is_list(label.type):
        labels = label.flatten().to_numpy().reshape(len(label), -1)
    else:
        labels = label.to_numpy()
    return Rows(split.name, tuple(table[name].to_pylist() for name in names), np.asarray(labels))
