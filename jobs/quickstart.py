"""Train the embedded demo and show what the model says about sentences it never saw."""

import sys
from typing import Any

from trainyard.cli import run_job
from trainyard.config import TrainConfig


def quickstart(config: TrainConfig) -> dict[str, Any]:
    """`jobs/train.py`, then a few predictions by plain transformers."""
    from transformers import pipeline
    from transformers.utils import logging

    from trainyard.demo import EXAMPLES
    from trainyard.training import fit

    result = fit(config)
    logging.disable_progress_bar()
    classify = pipeline("text-classification", model=result.model)
    for first, second, label in EXAMPLES:
        answer = classify({"text": first, "text_pair": second})
        right = "equivalent" if label else "not_equivalent"
        mark = "right" if answer["label"] == right else f"wrong, it is {right}"
        print(
            f"{first}\n{second}\n  {answer['label']} {answer['score']:.2f} ({mark})",
            file=sys.stderr,
        )
    return result.as_json()


if __name__ == "__main__":
    run_job(TrainConfig, quickstart)
