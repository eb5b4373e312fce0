"""Use each extension that the diffs of docs/extend.md add; print the results as JSON.

python tests/support/extensions_of_the_docs.py EMPTY_FOLDER, with the patched package in PYTHONPATH.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from support.small_models import classifier

from trainyard.config import TrainConfig
from trainyard.data import find_splits
from trainyard.evaluation.scoring import score
from trainyard.inference.registry import PREDICTORS
from trainyard.metrics import METRICS
from trainyard.serving.gateway.openapi import ANSWERS
from trainyard.tasks import get_task
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.searchers import suggest
from trainyard.tuning.space import build_space


def recall() -> dict[str, Any]:
    """Score rows of class 1 that are half right, and all others right."""
    references, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 2])
    task = replace(get_task("emotion"), metrics=("recall_worst",), score="recall_worst")
    rows = np.tile(predictions, 20), np.tile(references, 20)
    found = score(task, np.eye(6)[rows[0]], rows[1], seed=0)
    low, high = found["intervals"]["recall_worst"]
    return {
        "three classes": METRICS["recall_worst"].function(predictions, references),
        "with an interval": bool(low < found["metrics"]["recall_worst"] == 0.5 < high),
    }


def main(folder: Path) -> None:
    data = folder / "emotion"
    data.mkdir()
    for split in ("train", "validation"):
        rows = pd.DataFrame({"text": ["so sad", "so glad"], "label": [0, 1]})
        rows.to_parquet(data / f"{split}.parquet")
    splits = find_splits(TrainConfig(task="emotion", data_dir=str(folder)))
    model = str(classifier(folder / "model", ("no", "yes")))
    classify = PREDICTORS["text-classification"]
    sweep = SweepConfig(task="emotion", searcher="gp", scheduler="median")
    space = build_space("default", (), sweep)
    found = {
        "splits": [split.name for split in splits.splits],
        "recall": recall(),
        "engine": sorted(label["label"] for label in classify.load(model, engine="eager")("ba")[0]),
        "point": sorted(suggest("gp", space, sweep.base, 1, ()) or ()),
        "scheduler": type(SCHEDULERS["median"].tune_scheduler(sweep)).__name__,
        "top": PREDICTORS["top-label"].load(model)(["ba", "ba"]),
        "answer": str(ANSWERS["top-label"]),
        "labels": len(classify.load(model)("ba", min_score=0.5)[0]),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
