"""A new metric, engine, strategy or predictor is one row: each toy is used end to end."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.runs_locally import run_locally
from support.small_models import classifier

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.evaluation.comparison import compare
from trainyard.evaluation.config import EngineConfig
from trainyard.evaluation.engine_choice import choose_engine
from trainyard.evaluation.report import page
from trainyard.evaluation.scoring import score
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.batch.run import predict
from trainyard.inference.registry import PREDICTORS
from trainyard.inference.request_tokens import Item
from trainyard.inference.tasks.text_classification import (
    SequenceClassifier,
    TextClassificationParameters,
)
from trainyard.metrics import METRICS
from trainyard.metrics.registry import Metric
from trainyard.models.engines.registry import ENGINES, Engine, check_engine
from trainyard.report.dashboard.records import Run
from trainyard.storage import Files
from trainyard.tasks import TASKS
from trainyard.training.worker.gradients import Gradients
from trainyard.training.worker.strategies import STRATEGIES, Strategy
from trainyard.training.worker.weights import OPTIMIZER_FILE, Copy, stored_weights
from trainyard.tuning.honesty import SplitPredictions, confirm


def test_a_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def balance(predictions: Any, references: Any) -> float:
        """Mean of +1 for a correct row and -1 for a wrong one."""
        return float(np.where(predictions == references, 1.0, -1.0).mean())

    toy = Metric(title="row balance", function=balance, inputs=("labels",), bounds=(-1.0, 1.0))
    monkeypatch.setitem(METRICS, "balance", toy)

    task = replace(TASKS["demo"], metrics=("balance",), score="balance")
    labels = np.array([0, 1] * 20)
    good, bad = np.eye(2)[labels], np.eye(2)[1 - labels]
    bad[:10] = good[:10]
    found = score(task, bad, labels, seed=0)
    low, high = found["intervals"]["balance"]
    assert low < found["metrics"]["balance"] == -0.5 < high

    comparison = compare(task, good, bad, labels, names=("a", "b"), seed=0)
    assert comparison["verdict"].startswith("a is better than b: balance +1.5")

    seeds = [[rows.argmax(axis=1)] * 3 for rows in (bad, good)]
    searched = np.arange(40) % 4 == 0
    confirmed = confirm([SplitPredictions("balance", seeds, labels, searched)])
    assert confirmed.verdict == "better"
    assert confirmed.default_interval[0] < 0  # clipped to the row's own bounds, not to 0

    html = page(
        {
            "task": "demo", "data_name": "demo", "model": "m", "run": "r", "seconds": 1.0, "versions": {},
            "score": -0.5, "score_metric": "balance", "stored_temperature": None, "against": None,
            "max_length": 8, "group_column": None, "notes": [],
            "splits": {
                "validation": {
                    **found, "rows": 40, "truncated_rows": 0, "classes": [], "slices": [],
                    "worst": [], "confusion": None,
                }
            },
        }
    )  # fmt: skip
    assert "Row balance" in html

    monkeypatch.setitem(TASKS, "toy", replace(task, name="toy"))
    (tmp_path / "run.json").write_text('{"config": {"task": "toy"}}')
    assert Run(Files(), tmp_path, "key").metric == "balance"


def test_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build(model: Any, *_: Any) -> Any:
        return lambda **inputs: SimpleNamespace(logits=model(**inputs).logits + 1e-6)

    monkeypatch.setitem(ENGINES, "toy", Engine(build, ("float32",), ("float32",), ("cpu",)))
    for name in ("compile", "openvino"):
        monkeypatch.delitem(ENGINES, name)

    folder = classifier(tmp_path / "model", ("no", "yes"))
    toy, torch = (
        PREDICTORS["text-classification"].load(str(folder), engine=name)("ba co")[0]
        for name in ("toy", "torch")
    )
    assert [label["score"] for label in toy] == pytest.approx([label["score"] for label in torch])
    with pytest.raises(UserError, match=r"engine toy runs on cpu, not on cuda; use torch$"):
        check_engine("toy", "float32", "cuda")

    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"ba co {i}", "label": ("no", "yes")[i % 2]} for i in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = EngineConfig(model_name_or_path=str(folder), validation_file=str(file), num_rows=10)
    tried = {one["engine"] for one in choose_engine(config)["candidates"]}
    assert tried == {"torch", "toy"}


def test_a_strategy(
    monkeypatch: pytest.MonkeyPatch, small_run: TrainConfig, tmp_path: Path
) -> None:
    """It adds gradients up as autograd does, and stores an optimizer in its own way."""
    ddp = STRATEGIES["ddp"]

    def state(
        model: Any, optimizer: Any, writers: int, copy: Copy
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        weights, moments = ddp.state(model, optimizer, writers, copy)
        return weights, {"toy": moments}

    def load(model: Any, optimizer: Any, folder: Path) -> None:
        model.load_state_dict(stored_weights(model, folder))
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, weights_only=True)["toy"])

    toy = Strategy(ddp.prepare, state, load, Gradients, shards=False)
    monkeypatch.setitem(STRATEGIES, "toy", toy)
    # The flag's choices are in its type.
    monkeypatch.setattr("trainyard.config.flags.check_fields", lambda _: None)
    base = replace(small_run, storage_path=str(tmp_path), max_steps=6, eval_steps=3)
    losses, weights = {}, {}
    for name in ("ddp", "toy", "toy-cut"):
        strategy: Any = name.split("-")[0]
        config = replace(base, strategy=strategy, run_name=name)
        if name == "toy-cut":
            outcome, _ = run_locally(config, on_evaluation=lambda: False)
            assert (outcome.status, outcome.state.step) == ("stopped", 3)
        outcome, folder = run_locally(config)
        assert (outcome.status, outcome.state.step) == ("finished", 6)
        losses[name] = [line["loss"] for line in folder.metrics() if "loss" in line]
        weights[name] = (folder.checkpoints / "step-00000006/model.safetensors").read_bytes()
    assert losses["toy"] == pytest.approx(losses["ddp"], rel=1e-5)
    assert weights["toy"] == weights["toy-cut"] != weights["ddp"]


def test_a_predictor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Count(SequenceClassifier):
        """Number of tokens of each text."""

        task = "token-count"
        architectures = ("ForSequenceClassification",)
        parameters = TextClassificationParameters
        example = {"inputs": "ba co"}  # noqa: RUF012
        pair = ("first", "second")

        def encode(self, inputs: list[Any], _: Any) -> list[Item]:
            texts = [f"{v['first']} {v['second']}" if isinstance(v, dict) else v for v in inputs]
            return [Item([row]) for row in self.rows_of(self.tokenize(texts))]

        def decode(self, item: Item, results: list[Any], _: Any) -> int:
            return len(results) * item.rows[0].length

    monkeypatch.setitem(PREDICTORS, "token-count", Count)
    folder = classifier(tmp_path / "model")
    file = tmp_path / "rows.csv"
    file.write_text("text,more\nba co,ba\nba,ba co co\n")
    predict(
        PredictConfig(
            model_name_or_path=str(folder), input_file=str(file), text_pair_column="more",
            output_file=str(tmp_path / "out.jsonl"), model_task="token-count",
        )
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [8, 10]
