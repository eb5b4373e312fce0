"""Warnings before training, from cheap checks of the tokenized data."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainyard.data.splits import TEST, is_test
from trainyard.data.token_table import TokenTable
from trainyard.data.tokenize import PreparedData
from trainyard.tasks import Task

_RARE = 0.01


def warnings(data: PreparedData, task: Task, max_length: int) -> list[str]:
    """Return sentences on leaks, contradictions, empty and truncated rows, absent and rare labels.

    Rows count as equal if the 64-bit hashes of their token ids are equal.
    """
    tables = {name: data.table(name) for name in data.folders}
    hashes = {name: table.row_hashes() for name, table in tables.items()}
    found = [
        *_leaks(hashes),
        *_contradictions(tables["train"], hashes["train"], task),
        *_empty(tables),
        *_absent_labels(tables, task),
    ]
    if found:
        found.append("`trainyard data-doctor` with the same data flags shows the rows")
    return [*_truncated(tables, max_length), *found]


def _truncated(tables: Mapping[str, TokenTable], max_length: int) -> list[str]:
    return [
        f"{name}: {table.info['truncated_rows']} of {len(table)} rows were cut to --max-length "
        f"{max_length} tokens ({table.info['lost_tokens']} tokens lost)"
        for name, table in tables.items()
        if table.info["truncated_rows"]
    ]


def _leaks(hashes: Mapping[str, NDArray[np.uint64]]) -> list[str]:
    choosing = [name for name in hashes if name != "train" and not is_test(name)]
    pairs = [(name, "train") for name in hashes if name != "train"]
    for name in choosing:
        pairs += [(test, name) for test in (TEST, f"{name}_{TEST}") if test in hashes]
    leaked = [
        (name, other, int(np.isin(hashes[name], hashes[other]).sum())) for name, other in pairs
    ]
    return [
        f"warning: {rows} of {len(hashes[name])} rows of {name} occur in {other} too, so its score is "
        "too high"
        for name, other, rows in leaked
        if rows
    ]


def _contradictions(table: TokenTable, hashes: NDArray[np.uint64], task: Task) -> list[str]:
    if task.problem_type != "single_label_classification":
        return []
    order = np.argsort(hashes)
    ordered, labels = hashes[order], table.labels[order]
    disagree = (ordered[1:] == ordered[:-1]) & (labels[1:] != labels[:-1])
    texts = len(np.unique(ordered[1:][disagree]))
    occur = "text of train occurs" if texts == 1 else "texts of train occur"
    return [f"warning: {texts} {occur} with different labels"] if texts else []


def _empty(tables: Mapping[str, TokenTable]) -> list[str]:
    found = []
    for name, table in tables.items():
        lengths = table.lengths
        # Rows of special tokens only. Older tables lack their number; single texts have 2.
        empty = int((lengths <= table.info.get("special_tokens", 2)).sum())
        if empty:
            hold = "holds" if empty == 1 else "hold"
            found.append(f"warning: {empty} of {len(lengths)} rows of {name} {hold} no text at all")
    return found


def _absent_labels(tables: Mapping[str, TokenTable], task: Task) -> list[str]:
    if task.problem_type == "regression":
        return []
    found = []
    for name, table in tables.items():
        counts = (
            np.bincount(table.labels, minlength=task.num_labels)
            if task.problem_type == "single_label_classification"
            else np.count_nonzero(table.labels, axis=0)
        )
        absent = [task.labels[i] for i in np.flatnonzero(counts == 0)]
        rare = [
            task.labels[i] for i in np.flatnonzero((counts > 0) & (counts < _RARE * len(table)))
        ]
        if absent:
            found.append(f"warning: {name} has no row with the label {', '.join(absent[:5])}")
        if rare and name == "train":
            found.append(f"warning: fewer than 1 % of train have the label {', '.join(rare[:5])}")
    return found
