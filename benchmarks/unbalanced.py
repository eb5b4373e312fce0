"""Compare class weights, label smoothing and fitted thresholds on unbalanced data, on three seeds.

    python benchmarks/unbalanced.py --glue DIR --course DIR

Data: CoLA (70 % acceptable), emotions (GoEmotions' rows with one label, 28 classes) and
emotions-multi (all its rows). Emotions choose their epoch on validation rows and report test
scores. CoLA has no labeled test rows, so its scores are those of the last epoch. Differences from
the plain variant are of means over seeds, with Welch's 95 % intervals. Stores
results/unbalanced.json.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from provenance import provenance
from quality_figures import difference, last_scores
from unbalanced_table import unbalanced

from trainyard import TrainConfig, fit

RESULTS = Path(__file__).parent / "results" / "unbalanced.json"
TRAIN_ROWS, EVALUATION_ROWS = 4000, 2000
SHARED: Mapping[str, Any] = {
    "num_train_epochs": 2,
    "learning_rate": 2e-4,
    "train_batch_size": 32,
    "per_device_train_batch_size": 32,
    "warmup_steps": 0.1,
}
WEIGHTS = {"class_weights": "balanced"}
SMOOTHING = {"label_smoothing_factor": 0.1}
THRESHOLDS = {"label_thresholds": "fitted"}
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cola": {"plain": {}, "class weights": WEIGHTS, "label smoothing": SMOOTHING},
    "emotions": {"plain": {}, "class weights": WEIGHTS, "label smoothing": SMOOTHING},
    "emotions-multi": {"plain": {}, "class weights": WEIGHTS, "fitted thresholds": THRESHOLDS},
}
"""Fields of each variant, by data set."""
METRICS = {
    "cola": ("matthews_correlation", "balanced_accuracy", "log_loss"),
    "emotions": ("f1_macro", "accuracy", "balanced_accuracy", "log_loss"),
    "emotions-multi": ("f1_macro", "f1_micro"),
}


def emotions(source: Path, *, several: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of a GoEmotions file, labels by name; single-label rows unless `several`."""
    names = (source.parent / "labels.txt").read_text().split()
    with source.open(newline="") as file:
        for text, numbers, _ in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            labels = [names[int(number)] for number in numbers.split(",")]
            if several:
                yield {"text": text, "label": labels}
            elif len(labels) == 1:
                yield {"text": text, "label": labels[0]}


def write_files(source: Path, folder: Path, *, several: bool) -> dict[str, str]:
    """Write the first rows of each split as JSON Lines; return the data flags."""
    flags = {}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        rows = [*emotions(source / f"{name}.tsv", several=several)]
        rows = rows[: TRAIN_ROWS if split == "train" else EVALUATION_ROWS]
        path = folder / f"emotions{'-multi' * several}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags[f"{split}_file"] = str(path)
    return flags


def main() -> None:
    """Train all variants on all seeds, store the figures and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--glue", required=True)
    parser.add_argument("--course", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder, goemotions = Path(made), args.course / "multilabel" / "goemotions"
        data: dict[str, dict[str, Any]] = {
            "cola": {"task": "cola", "data_dir": args.glue, "max_train_samples": TRAIN_ROWS},
            "emotions": write_files(goemotions, folder, several=False),
            "emotions-multi": {
                **write_files(goemotions, folder, several=True),
                "problem_type": "multi_label_classification",
            },
        }
        for name in args.only:
            found = {
                variant: {
                    seed: scores(name, {**data[name], **fields, "seed": seed}, folder)
                    for seed in args.seeds
                }
                for variant, fields in VARIANTS[name].items()
            }
            store(name, found, args)
    print(unbalanced())


def scores(name: str, fields: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Train one run; return the reported metrics."""
    metrics = METRICS[name]
    config = TrainConfig(
        **{**SHARED, **fields}, metrics=metrics, storage_path=str(folder / "runs" / name)
    )
    result = fit(config)
    if "test" in result.metrics:
        return {metric: result.metrics["test"][metric] for metric in metrics}
    last = last_scores(Path(result.model).parent)
    return {metric: last[f"validation {metric}"] for metric in metrics}


def store(name: str, found: Mapping[str, Mapping[int, Any]], args: argparse.Namespace) -> None:
    """Store a data set's scores by variant and seed, and differences from the plain variant."""
    figures: dict[str, Any] = {}
    for variant, by_seed in found.items():
        for metric in METRICS[name]:
            values, plain = (
                [scores[metric] for scores in runs.values()] for runs in (by_seed, found["plain"])
            )
            figures.setdefault(variant, {})[metric] = {
                "values": values,
                **({} if variant == "plain" else difference(values, plain)),
            }
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    head = provenance(args.glue)
    head["command"] = head["command"].replace(str(args.course), "DIR")
    kept[name] = {**head, "recipe": dict(SHARED), "seeds": args.seeds, "variants": figures}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
