"""Measure how many of the faults planted in real data the data doctor finds, and its speed.

    python benchmarks/check_doctor.py --data-dir DIR [--rows 400000]

Flips: precision of the ranking at several recalls, with 5 % of SST-2's training labels flipped, for
three seeds. Leaks: training rows copied into the validation split, unchanged, with changed case and
spacing, or with one word replaced; all must be found. Known: duplicates in the official files,
compared with the counts in the data's README. Speed: all checks but tokenization, on pairs made of
SST-2's phrases.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainyard.config import TrainConfig
from trainyard.doctor.data.duplicates import contradictions, duplicates
from trainyard.doctor.data.labels import drift, features, out_of_fold, suspicious_labels
from trainyard.doctor.data.rows import Rows, all_splits, faulty_texts, read
from trainyard.storage.software import versions
from trainyard.tasks import get_task

RECALLS = (0.5, 0.6, 0.7, 0.8, 0.9)
KNOWN: dict[str, dict[Any, int]] = {
    "cola": {"train": 19, ("train", "validation"): 16, ("train", "test"): 19},
    "sst2": {"train": 371},
    "stsb": {"train": 43, ("train", "validation"): 6, ("train", "test"): 7},
}
"""Rows with equal texts in the official files: in a split, or of the second split in the first."""


def rows_of(task: str, data_dir: str) -> list[Rows]:
    """Read all splits of a task."""
    splits, _ = all_splits(TrainConfig(task=task, data_dir=data_dir))
    return [read(split, splits.task) for split in splits.splits]


def flips(train: Rows, seed: int) -> dict[str, Any]:
    """Measure the precision of the ranking at each recall, with 5 % of the labels flipped."""
    rng = np.random.default_rng(seed)
    planted = np.zeros(len(train), bool)
    planted[rng.choice(len(train), len(train) // 20, replace=False)] = True
    labels = np.where(planted, 1 - train.labels, train.labels)
    started = time.monotonic()
    found = out_of_fold(features(train.words), labels, seed)
    seconds = time.monotonic() - started
    order = np.argsort(found[np.arange(len(labels)), labels], kind="stable")
    hits = np.cumsum(planted[order])
    ranks = [int(np.searchsorted(hits, recall * planted.sum())) for recall in RECALLS]
    return {
        "seed": seed,
        "planted": int(planted.sum()),
        "precision_at_recall": {
            str(recall): round(float(hits[k] / (k + 1)), 3)
            for recall, k in zip(RECALLS, ranks, strict=True)
        },
        "seconds": round(seconds, 1),
    }


def leaks(train: Rows, validation: Rows, count: int) -> dict[str, Any]:
    """Plant `count` leaks of each of three kinds; count the leaks reported in addition."""
    rng = np.random.default_rng(0)
    long = [
        i
        for i, words in enumerate(train.words)
        if len(words) >= 10 and any(word.isalnum() for word in train.texts[0][i].split())
    ]
    chosen = [int(i) for i in rng.choice(long, 3 * count, replace=False)]
    texts = [[column[i] for column in train.texts] for i in chosen]
    for row in texts[count : 2 * count]:
        row[:] = [f"  {text.upper()}".replace(" ", "  ") for text in row]
    for row in texts[2 * count :]:
        words = row[0].split()
        plain = [k for k, word in enumerate(words) if word.isalnum()]  # one token each
        words[int(rng.choice(plain))] = "qqq"
        row[0] = " ".join(words)
    added = tuple(
        [*column, *(row[k] for row in texts)] for k, column in enumerate(validation.texts)
    )
    spoilt = Rows("validation", added, np.concatenate([validation.labels, np.zeros(3 * count)]))
    (before,) = duplicates([train, validation], 0.8, 0)["between"]
    (after,) = duplicates([train, spoilt], 0.8, 0)["between"]
    return {
        "planted_of_each": count,
        "copies_and_case_found": after["normalized"] - before["normalized"],
        "near_found": after["near"] - before["near"],
    }


def known(data_dir: str) -> dict[str, Any]:
    """Return [expected, found] counts of the duplicates in the official files."""
    report: dict[str, Any] = {}
    for task, expected in KNOWN.items():
        found = duplicates(rows_of(task, data_dir), 1.0, 0)
        between = {(pair["first"], pair["second"]): pair["exact"] for pair in found["between"]}
        report[task] = {
            where if isinstance(where, str) else " in ".join(reversed(where)): [
                count,
                found["inside"][where]["exact"] if isinstance(where, str) else between[where],
            ]
            for where, count in expected.items()
        }
    return report


def speed(train: Rows, rows: int) -> dict[str, float]:
    """Measure the seconds of each check on `rows` training and `rows` / 10 validation rows."""
    rng = np.random.default_rng(0)

    def make(name: str, count: int) -> Rows:
        first, second = (
            [
                f"{train.texts[0][i]}{train.texts[0][j]}"
                for i, j in rng.integers(len(train), size=(count, 2))
            ]
            for _ in range(2)
        )
        return Rows(name, (first, second), rng.integers(0, 2, count))

    splits = [make("train", rows), make("validation", rows // 10)]
    task, clock = get_task("qqp"), dict[str, float]()
    checks: dict[str, Callable[[], Any]] = {
        "words": lambda: [len(part.words) for part in splits],
        "texts": lambda: faulty_texts(splits, 10),
        "contradictions": lambda: contradictions(splits, False, 10),
        "duplicates": lambda: duplicates(splits, 0.8, 10),
        "drift": lambda: drift(task, splits[0], splits[1], seed=0),
        "labels": lambda: suspicious_labels(task, splits[0], seed=0, examples=10),
    }
    for name, check in checks.items():
        started = time.monotonic()
        check()
        clock[name] = round(time.monotonic() - started, 1)
    return {**clock, "all": round(sum(clock.values()), 1)}


def main() -> None:
    """Measure the requested parts, print them and add them to benchmarks/results/doctor.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", choices=("flips", "leaks", "known", "speed"))
    parser.add_argument("--rows", type=int, default=400_000)
    args = parser.parse_args()
    train, validation, _ = rows_of("sst2", args.data_dir)
    parts: dict[str, Callable[[], Any]] = {
        "known": lambda: known(args.data_dir),
        "leaks": lambda: leaks(train, validation, 300),
        "flips": lambda: [flips(train, seed) for seed in range(3)],
        "speed": lambda: {"rows": args.rows, **speed(train, args.rows)},
    }
    path = Path(__file__).parent / "results" / "doctor.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for name, part in parts.items():
        if args.only in (None, name):
            report[name] = {"found": part(), "versions": versions()}  # the day may differ by part
            print(name, json.dumps(report[name]), flush=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
