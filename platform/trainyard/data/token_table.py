"""A tokenized split on disk: flat memory-mapped arrays, from which any rows can be gathered.

    ids.bin      int32  [tokens]      token ids of all rows, one after another
    types.bin    uint8  [tokens]      token_type_ids, only where the model has them
    offsets.npy  int64  [rows + 1]    row i is ids[offsets[i]:offsets[i + 1]]
    labels.npy   int64 [rows] (classes), float32 [rows] (regression), float32 [rows, labels]
    table.json   rows, padding id, truncation counts, sketch of the texts

Memory does not grow with the number of tokens: the kernel loads the pages that a step reads, and
can drop them again, as with nanoGPT's train.bin.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainyard.batch_plan import Rows
from trainyard.models import RIGHT, Padding

_HASHED_AT_ONCE = 100_000


class TokenTable:
    """Reader of a table: `lengths` for batch plans, `gather` for a padded batch."""

    def __init__(self, folder: Path) -> None:
        self.info: dict[str, Any] = json.loads((folder / "table.json").read_text())
        # Plain arrays: indexing a memmap creates another memmap, which is slower than the copy of
        # rows.
        self.offsets: NDArray[np.int64] = np.asarray(np.load(folder / "offsets.npy", mmap_mode="r"))
        self.labels: NDArray[Any] = np.asarray(np.load(folder / "labels.npy", mmap_mode="r"))
        self._ids = np.asarray(np.memmap(folder / "ids.bin", dtype=np.int32, mode="r"))
        types = folder / "types.bin"
        self._types: NDArray[np.uint8] | None = None
        if types.exists():
            self._types = np.asarray(np.memmap(types, dtype=np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, special tokens included; shape [rows]."""
        return np.diff(self.offsets).astype(np.int32)

    def row_hashes(self) -> NDArray[np.uint64]:
        """Hash the token ids of each row to 64 bits; shape [rows].

        Multilinear hashing with a random factor for the length and for each position (Carter and
        Wegman 1979): different rows of equal length collide with probability of about 2^-63.
        """
        longest = int(self.lengths.max(initial=0))
        factors = np.random.default_rng(0).integers(2**63, size=longest + 1, dtype=np.uint64) | 1
        found = np.zeros(len(self), np.uint64)
        for first in range(0, len(self), _HASHED_AT_ONCE):
            offsets = self.offsets[first : first + _HASHED_AT_ONCE + 1]
            ids = self._ids[offsets[0] : offsets[-1]].astype(np.uint64)
            lengths = np.diff(offsets)
            position = np.arange(len(ids)) - np.repeat(offsets[:-1] - offsets[0], lengths)
            sums = np.zeros(len(ids) + 1, np.uint64)
            np.cumsum(ids * factors[1 + position], out=sums[1:])
            ends = sums[offsets - offsets[0]]
            found[first : first + len(lengths)] = np.diff(ends) + factors[0] * lengths.astype(
                np.uint64
            )
        return found

    def two_rows(self) -> list[dict[str, list[int]]]:
        """Return the token lists of the shortest non-empty row and of a longer row, by input name.

        The longer row has at least 8 more tokens, if there is one. If all rows have the same
        length, the list holds a single row.
        """
        lengths = self.lengths
        order = np.argsort(np.where(lengths > 0, lengths, lengths.max()), kind="stable")
        longer = order[lengths[order] > lengths[order[0]]]
        clearly = longer[lengths[longer] >= lengths[order[0]] + 8]
        rows = [order[0], *(clearly if len(clearly) else longer[-1:])[:1]]
        columns: dict[str, NDArray[Any]] = {"input_ids": self._ids}
        if self._types is not None:
            columns["token_type_ids"] = self._types
        return [
            {
                name: values[self.offsets[row] : self.offsets[row + 1]].tolist()
                for name, values in columns.items()
            }
            for row in rows
        ]

    def gather(self, rows: Rows, width: int, padding: Padding = RIGHT) -> dict[str, NDArray[Any]]:
        """Return model inputs for `rows`, padded to `width` tokens.

        The inputs are int64 `input_ids`, `attention_mask` and, if the model has them,
        `token_type_ids`, of shape [rows, width]. `labels` has the shape [rows], or [rows, labels]
        for multi-label data.
        """
        starts = self.offsets[rows][:, None]
        lengths = self.offsets[rows + 1][:, None] - starts
        position = np.arange(width) - padding.starts(lengths, width)  # in the row
        filled = (position >= 0) & (position < lengths)
        tokens = (starts + position)[filled]

        def spread(values: NDArray[Any], fill: int) -> NDArray[np.int64]:
            found = np.full((len(rows), width), fill, np.int64)
            found[filled] = values[tokens]
            return found

        batch = {
            "input_ids": spread(self._ids, self.info["pad_id"]),
            "attention_mask": filled.astype(np.int64),
        }
        if self._types is not None:
            batch["token_type_ids"] = spread(self._types, 0)
        batch["labels"] = self.labels[rows]
        return batch


class TableWriter:
    """Writer of a table: rows are appended in order; the table is complete after `close`."""

    def __init__(self, folder: Path, *, types: bool) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._ids = (folder / "ids.bin").open("wb")
        self._types = (folder / "types.bin").open("wb") if types else None
        self._lengths: list[NDArray[np.int32]] = []
        self._labels: list[NDArray[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._ids, self._types):
            if file is not None:
                file.close()

    def append(
        self,
        ids: NDArray[np.int32],
        types: NDArray[np.uint8] | None,
        lengths: NDArray[np.int32],
        labels: NDArray[Any],
    ) -> None:
        """Append rows: flat `ids` (and `types`) of shape [tokens], cut by `lengths` of shape [rows]."""
        self._ids.write(ids.astype(np.int32, copy=False).tobytes())
        if self._types is not None and types is not None:
            self._types.write(types.astype(np.uint8, copy=False).tobytes())
        # Copy: views would keep whole blocks in Ray's object store.
        self._lengths.append(lengths.copy())
        self._labels.append(labels.copy())

    def close(self, info: Mapping[str, Any]) -> None:
        """Write offsets, labels and table.json; `info` must hold `pad_id`."""
        lengths = np.concatenate(self._lengths)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        np.save(self._folder / "offsets.npy", offsets)
        np.save(self._folder / "labels.npy", np.concatenate(self._labels))
        table = {"rows": len(lengths), "tokens": int(offsets[-1]), **info}
        (self._folder / "table.json").write_text(json.dumps(table, indent=2))
