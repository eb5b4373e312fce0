"""An evaluation is named after the file of its rows, or after its task."""

from pathlib import Path

from support.sample_reports import evaluation_page

from trainyard.evaluation import EvalConfig
from trainyard.evaluation.run import Evaluation


def test_an_evaluation_is_named_after_its_data() -> None:
    own = EvalConfig(model_name_or_path="m", validation_file="data/held.csv")
    assert own.data_name("own") == "held"
    assert EvalConfig(model_name_or_path="m").data_name("mrpc") == "mrpc"
    details = {
        "run": "eval-own", "task": "own", "data_name": "held", "score": 0.5, "model": "m", "seconds": 1.0,
        "score_metric": "f1", "splits": {}, "against": None,
    }  # fmt: skip
    line = Evaluation(Path("runs/eval-own"), details).as_json()
    assert (line["task"], line["data_name"]) == ("own", "held")
    assert "Evaluation: held rows" in evaluation_page(data_name="held rows")
