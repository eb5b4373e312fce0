"""Use each extension that the diffs of docs/extend.md add; print the results as JSON.

python tests/support/extensions_of_the_docs.py EMPTY_FOLDER, with the patched package in PYTHONPATH.
"""

import json
import sys
from pathlib import Path

import pandas as pd
from support.small_models import classifier

from trainyard.config import TrainConfig
from trainyard.data import find_splits
from trainyard.inference.registry import PREDICTORS
from trainyard.serving.gateway.openapi import ANSWERS
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.schedulers import SCHEDULERS
from trainyard.tuning.searchers import suggest
from trainyard.tuning.space import build_space


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
        "engine": sorted(label["label"] for label in classify.load(model, engine="eager")("ba")[0]),
        "point": sorted(suggest("gp", space, sweep.base, 1, ()) or ()),
        "scheduler": type(SCHEDULERS["median"].tune_scheduler(sweep)).__name__,
        "tokens": PREDICTORS["token-count"].load(model)("ba co"),
        "answer": str(ANSWERS["token-count"]),
        "labels": len(classify.load(model)("ba", min_score=0.5)[0]),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
