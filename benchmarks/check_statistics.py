"""Check that metrics are correct, and that 95 % intervals have 95 % coverage.

    python benchmarks/check_statistics.py --data-dir DIR [--trials 1000]
    python benchmarks/check_statistics.py --only sweeps [--worlds 400]
    python benchmarks/check_statistics.py --only comparisons [--worlds 400]

Each part replaces its own tables in results/statistics.json and keeps the others.

Metrics: the real labels of every evaluation split with made-up predictions (the label, or with
probability 0.2 another one; a similarity plus noise), scored with our code and with scikit-learn
and SciPy, called as in `evaluate`'s `glue` metric. Coverage: the share of validation sets, drawn
from a known population in GLUE's sizes, whose interval contains the population's value. Sweeps: see
`synthetic_sweeps`; a cell may have 5 % wrong verdicts and needs 93 % coverage, within the
simulation's own interval. Comparisons: see `synthetic_comparisons`.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance
from scipy import stats
from sklearn import metrics
from synthetic_comparisons import best_of, grouped
from synthetic_sweeps import Cell, is_honest, simulate

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.doctor.data.rows import read
from trainyard.evaluation.scoring import score
from trainyard.glue.recipes import RECIPES
from trainyard.metrics import METRICS
from trainyard.stats import metric_interval
from trainyard.storage.software import versions
from trainyard.tasks import get_task
from trainyard.tuning import honesty

REFERENCE: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": lambda p, y: float((p == y).mean()),
    "f1": lambda p, y: float(metrics.f1_score(y_true=y, y_pred=p)),
    "matthews_correlation": lambda p, y: float(metrics.matthews_corrcoef(y, p)),
    "pearson": lambda p, y: float(stats.pearsonr(p.astype(float), y.astype(float))[0]),
    "spearmanr": lambda p, y: float(stats.spearmanr(p.astype(float), y.astype(float))[0]),
}
"""Reference metrics, as in evaluate's metrics/glue/glue.py."""

ROWS = {"wnli": 71, "rte": 277, "mrpc": 408, "sst2": 872, "cola": 1043, "stsb": 1500, "qnli": 5463}


def compare_metrics(data_dir: str) -> dict[str, float]:
    """Return the largest difference of any metric, by task and split."""
    found = {}
    rng = np.random.default_rng(0)
    for name in RECIPES:
        task = get_task(name)
        config = TrainConfig(task=name, data_dir=data_dir)
        for split in find_splits(config, task.evaluation_splits).splits:
            labels = read(split, task).labels
            if task.labels:
                shift = rng.integers(1, task.num_labels, len(labels)) * (
                    rng.random(len(labels)) < 0.2
                )
                logits = np.eye(task.num_labels)[(labels + shift) % task.num_labels]
                predictions = logits.argmax(axis=1)
            else:
                logits = (labels + rng.normal(0, 1, len(labels)))[:, None].astype(np.float32)
                predictions = logits[:, 0]
            ours = score(task, logits, labels, seed=0)["metrics"]
            found[f"{name} {split.name} ({len(labels)} rows)"] = max(
                abs(ours[metric] - REFERENCE[metric](predictions, labels))
                for metric in task.metrics
            )
    return found


def draw(metric: str, rows: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Draw predictions and labels: 68 % of class 1, 83 % right; values have r = 0.85."""
    if "values" in METRICS[metric].inputs:
        labels = np.round(rng.uniform(0, 5, rows), 1)
        return labels + rng.normal(0, 0.9, rows), labels
    labels = (rng.random(rows) < 0.68).astype(np.int64)
    return np.where(rng.random(rows) < 0.83, labels, 1 - labels), labels


def coverage(metric: str, rows: int, trials: int) -> dict[str, Any]:
    """Measure how often the interval of a sample contains the value of the population."""
    rng = np.random.default_rng(1)
    truth = METRICS[metric].function(*draw(metric, 2_000_000, rng))
    held = []
    for trial in range(trials):
        low, high = metric_interval(metric, *draw(metric, rows, rng), seed=trial)
        held.append(low <= truth <= high)
    low, high = stats.binomtest(sum(held), trials).proportion_ci(method="wilson")
    return {
        "rows": rows, "trials": trials, "covered": round(float(np.mean(held)), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }  # fmt: skip


def sweep_cells() -> list[Cell]:
    """List the cells of the grid: its corners, some points inside, and extended sweeps.

    All recipes are equally good, except in the last two cells, which show that differences are
    found.
    """
    corners = itertools.product((6, 200), (0.0, 1.0), (1, 4), (1, 3, 10), (100, 5000))
    inside = [
        Cell(trials, taste, top, seeds, rows, seed_spread)
        for trials, taste, top, seeds, rows in (
            (48, 1.0, 1, 8, 300), (100, 1.0, 1, 3, 300), (24, 0.5, 2, 3, 300), (24, 0.5, 2, 2, 1000),
            (100, 0.5, 3, 5, 1000),
        )
        for seed_spread in (0.0, 0.3)
    ]  # fmt: skip
    extended = [
        Cell(trials, taste, top, seeds, rows, 0.1, extended_to=4 * trials)
        for trials, taste, top, seeds, rows in (
            (6, 0.0, 1, 10, 100), (50, 1.0, 1, 3, 300), (50, 1.0, 1, 10, 1000), (12, 0.5, 4, 10, 1000),
        )
    ]  # fmt: skip
    different = [
        Cell(12, 0.2, 2, 3, 300, 0.15, 0.4), Cell(50, 0.2, 2, 3, 1000, 0.05, 0.2, extended_to=100),
    ]  # fmt: skip
    return [*(Cell(*corner, seed_spread=0.1) for corner in corners), *inside, *extended, *different]


def check_sweeps(worlds: int) -> dict[str, Any]:
    """Simulate every cell of `sweep_cells`."""
    honesty.RESAMPLES = 200  # of 1,000: the variance is as accurate, and 400 worlds take less time
    found = []
    for cell in sweep_cells():
        found.append(simulate(cell, worlds))
        print(json.dumps(found[-1]), flush=True)
    return {"method": "search rows and confirmation rows", "cells": found}


def check_comparisons(worlds: int) -> dict[str, Any]:
    """Count false verdicts of `eval --against` on rows that chose the model, or are dependent."""
    chosen = [
        best_of(candidates, rows, alike, "rte", worlds, corrected=True)
        for rows, alike in ((300, 0.0), (300, 0.8), (1000, 0.0))
        for candidates in (1, 3, 12, 24)
    ]
    chosen += [best_of(n, 300, 0.0, "rte", worlds, corrected=False) for n in (1, 3, 12, 24)]
    chosen += [best_of(n, 300, 0.0, "mrpc", worlds, corrected=True) for n in (1, 12)]
    dependent = [
        grouped(groups, each, worlds, by_group=by_group)
        for groups, each in ((10, 5), (50, 5), (150, 5), (150, 2))
        for by_group in (False, True)
    ]
    for cell in (*chosen, *dependent):
        print(json.dumps(cell), flush=True)
    return {"best of candidates": chosen, "dependent rows": dependent}


def store(path: Path, **tables: Any) -> None:
    """Replace tables of the stored results."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **tables}, indent=1) + "\n")


def main() -> None:
    """Run the checks, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["metrics", "sweeps", "comparisons"])
    parser.add_argument("--data-dir")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--worlds", type=int, default=400)
    args = parser.parse_args()
    path = Path(__file__).parent / "results" / "statistics.json"
    if args.only in (None, "sweeps"):
        found = check_sweeps(args.worlds)
        store(path, sweeps={**provenance(args.data_dir), **found})
        assert all(map(is_honest, found["cells"]))
    if args.only in (None, "comparisons"):
        found = check_comparisons(args.worlds)
        store(path, comparisons={**provenance(args.data_dir), **found})
        for cell in found["best of candidates"]:
            assert cell["better"][1] <= 0.025 or not cell["corrected"]
        for cell in found["dependent rows"]:
            honest = cell["covered"][2] >= 0.93 and cell["wrong"][1] <= 0.05
            assert honest or not cell["by_group"]
    if args.only in (None, "metrics"):
        if args.data_dir is None:
            parser.error("the metrics are checked on real labels: give --data-dir")
        differences = compare_metrics(args.data_dir)
        print(json.dumps(differences, indent=2), flush=True)
        assert max(differences.values()) < 1e-12
        covered = check_coverage(args.trials)
        print(json.dumps(covered, indent=2))
        store(path, largest_difference=differences, coverage=covered, versions=versions())


def check_coverage(trials: int) -> dict[str, Any]:
    """Measure the coverage of every kind of interval, at the sizes of GLUE's validation splits."""
    covered = {}
    for task in ("wnli", "rte", "sst2", "qnli"):
        covered[f"accuracy, {task}"] = coverage("accuracy", ROWS[task], trials)
    covered["f1, mrpc"] = coverage("f1", ROWS["mrpc"], trials)
    covered["matthews_correlation, cola"] = coverage("matthews_correlation", ROWS["cola"], trials)
    covered["pearson, stsb"] = coverage("pearson", ROWS["stsb"], trials // 5)
    covered["spearmanr, stsb"] = coverage("spearmanr", ROWS["stsb"], trials // 5)
    return covered


if __name__ == "__main__":
    main()
