"""What a confirmation compares by: decisions, or the probabilities that some metrics read."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from trainyard.metrics import METRICS, get_metric
from trainyard.storage import RunFolder
from trainyard.tasks import get_task
from trainyard.tuning.confirm import Rows, _answers


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "average_precision"])
def test_a_metric_of_the_confirmation_gets_what_it_reads(metric: str, tmp_path: Path) -> None:
    assert metric in METRICS
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.0, 3.0]], np.float32)
    run = RunFolder(tmp_path)
    run.predictions.mkdir(parents=True)
    np.save(run.predictions / "validation.npy", logits)
    rows = Rows(("validation",), np.array([0, 1, 0, 1]), np.ones(4, bool))
    context = cast("Any", SimpleNamespace(task=replace(get_task("mrpc"), score=metric)))
    found = _answers(context, run, rows)
    assert get_metric(metric).function(found, rows.references) == pytest.approx(1.0)
