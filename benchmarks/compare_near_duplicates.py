"""Compare our exact join with MinHash LSH (datasketch): near duplicates found, and seconds.

    pip install datasketch
    python benchmarks/compare_near_duplicates.py --data-dir DIR --task stsb

Both look for pairs (row of validation, row of train) of Jaccard similarity 0.8 or more over the same
words. MinHash (128 permutations, as in datasketch's documentation) proposes candidates. These are
verified, so only missed pairs count against it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from trainyard.config import TrainConfig
from trainyard.doctor.data.duplicates import _numbered, near_pairs
from trainyard.doctor.data.rows import all_splits, read

SIMILARITY = 0.8


def by_minhash(words: list[list[str]], others: list[list[str]]) -> set[tuple[int, int]]:
    """Return the verified pairs among those that MinHash LSH proposes."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILARITY, num_perm=128)
    left, right = ([set(_numbered(row)) for row in side] for side in (words, others))

    def sketch(row: set[str]) -> Any:
        found = MinHash(num_perm=128)
        found.update_batch([word.encode() for word in row])
        return found

    with index.insertion_session() as session:
        for j, row in enumerate(right):
            if row:
                session.insert(j, sketch(row))
    return {
        (i, j)
        for i, row in enumerate(left)
        if row
        for j in index.query(sketch(row))
        if len(row & right[j]) >= SIMILARITY * len(row | right[j]) - 1e-9
    }


def main() -> None:
    """Run both methods, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--task", default="stsb")
    args = parser.parse_args()
    splits, _ = all_splits(TrainConfig(task=args.task, data_dir=args.data_dir))
    train, validation = (read(split, splits.task) for split in splits.splits[:2])
    words, others = validation.words, train.words
    found: dict[str, dict[str, Any]] = {}
    pairs = {}
    methods: dict[str, Callable[[], Any]] = {
        "exact join": lambda: near_pairs(words, others, SIMILARITY),
        "datasketch": lambda: by_minhash(words, others),
    }
    for name, method in methods.items():
        started = time.monotonic()
        answer: Any = method()
        seconds = time.monotonic() - started
        if name == "exact join":
            answer = set(zip(answer.first.tolist(), answer.second.tolist(), strict=True))
        pairs[name] = answer
        found[name] = {"pairs": len(answer), "seconds": round(seconds, 2)}
    found["datasketch"]["recall"] = round(
        len(pairs["datasketch"] & pairs["exact join"]) / max(len(pairs["exact join"]), 1), 4
    )
    assert not pairs["datasketch"] - pairs["exact join"]
    report = {
        **provenance(args.data_dir),
        "task": args.task,
        "rows": [len(validation), len(train)],
        **found,
        "numpy": np.__version__,
    }
    print(json.dumps(report))
    path = Path(__file__).parent / "results" / f"near-duplicates-{args.task}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
