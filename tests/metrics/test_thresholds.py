"""Thresholds of the labels of a multi-label model, from training to predictions and server."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from support.serving_locally import LocalModels, load, serving
from support.tiny import WORDS

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.evaluation import EvalConfig, evaluate
from trainyard.evaluation.comparison import Selection
from trainyard.evaluation.inputs import EvaluatedModel
from trainyard.evaluation.run import _Facts, _notes_on_cuts
from trainyard.inference import PREDICTORS, PredictConfig, predict
from trainyard.metrics import as_thresholds, cross_fitted_cuts, decode, fit_cuts, stored_cuts
from trainyard.tasks import get_task
from trainyard.training import fit

SEVERAL: Any = "multi_label_classification"


def f1_of(labels: Any, decisions: Any) -> list[float]:
    hits = (labels * decisions).sum(axis=0)
    found = 2 * hits / np.maximum((labels + decisions).sum(axis=0), 1)
    return [float(value) for value in found]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.02, 0.3, 0.9]))
def test_fitted_f1_is_the_best_on_its_rows(seed: int, rows: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, 3)) < share).astype(np.float32)
    # One decimal: many rows share a logit. The last label is beyond the limit.
    logits = np.round(rng.normal([0, -2, 40], 2, (rows, 3)) + labels, 1).astype(np.float32)
    cuts = fit_cuts(logits, labels)
    found = f1_of(labels, decode(SEVERAL, logits, cuts))
    half = f1_of(labels, decode(SEVERAL, logits))
    for label in range(3):
        others = [
            f1_of(labels, decode(SEVERAL, logits, cut))[label] for cut in np.arange(-6.85, 6.9, 0.1)
        ]
        assert found[label] >= max([half[label], *others]) - 1e-12
        if found[label] == half[label]:
            assert cuts[label] == 0


def test_labels_without_rows_and_ties_keep_one_half() -> None:
    logits = np.array([[3.0, -1.0, 4.0], [2.0, -2.0, 3.0], [-3.0, -3.0, 2.0]], np.float32)
    labels = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]], np.float32)
    cuts = fit_cuts(logits, labels)
    assert cuts.tolist() == [0.0, 0.0, 2.5]  # right at 0 already, without rows, midway
    assert as_thresholds(cuts, ("a", "b", "c"))["a"] == 0.5


def test_cross_fitted_cuts_never_saw_their_row() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 1)) < 0.3).astype(np.float32)
    logits = rng.normal(-2, 1, (40, 1)).astype(np.float32)
    cuts = cross_fitted_cuts(logits, labels, seed=1)
    assert len(np.unique(cuts)) > 1
    for row in range(40):
        changed = labels.copy()
        changed[row] = 1 - changed[row]
        assert cross_fitted_cuts(logits, changed, seed=1)[row] == cuts[row]
    assert (
        f1_of(labels, decode(SEVERAL, logits, cuts))[0]
        <= f1_of(labels, decode(SEVERAL, logits, fit_cuts(logits, labels)))[0]
    )


def test_thresholds_that_do_not_fit_are_refused() -> None:
    for wrong in ({"a": 0.5}, {"a": 0.5, "b": 1.0}, {"a": "x", "b": 0.5}, 0.5):
        config = SimpleNamespace(id2label={0: "a", 1: "b"}, label_thresholds=wrong)
        with pytest.raises(UserError, match=r"label_thresholds in the model's config\.json is"):
            stored_cuts(config)
    with pytest.raises(UserError, match="is for rows with several labels, but the task is a sin"):
        TrainConfig(label_thresholds="fitted").check_loss(get_task("mrpc"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "stores"),
        ("epochs", "stores; they were fitted on rows of v, so its F1 is too high"),
    ],
)
def test_an_evaluation_says_where_thresholds_were_fitted(kind: Any, words: str) -> None:
    model = EvaluatedModel("m", "m", None, ("a",), SEVERAL, None, cuts=np.zeros(1))
    facts = {"v": _Facts({}, None, [Selection(kind=kind, sentence="")])}
    assert _notes_on_cuts(model, facts) == [f"note: labels apply at the thresholds that m {words}"]
    assert _notes_on_cuts(dataclasses.replace(model, cuts=None), facts) == []


@pytest.mark.long
def test_thresholds_decide_in_predictions_evaluation_and_server(
    cluster: Any,  # noqa: ARG001
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(120):
        words = rng.choice(WORDS, size=8).tolist()
        rows.append(
            {"text": " ".join(words), "label": [n for n in ("ba", "co") if words[0][:2] == n]}
        )
    for name, part in (("train", rows[:60]), ("validation", rows[60:90]), ("test", rows[90:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    config = TrainConfig(
        train_file=str(tmp_path / "train.jsonl"), validation_file=str(tmp_path / "validation.jsonl"),
        test_file=str(tmp_path / "test.jsonl"), problem_type=SEVERAL, max_steps=4,
        model_name_or_path=str(tiny_model), max_length=32, storage_path=str(tmp_path / "runs"),
        run_name="fitted", label_thresholds="fitted", resources_per_worker={"CPU": 1},
    )  # fmt: skip
    result = fit(config)
    assert result.label_thresholds.keys() == {"ba", "co"}
    assert any(value != 0.5 for value in result.label_thresholds.values())
    settings_ = json.loads((Path(result.model) / "config.json").read_text())
    assert settings_["label_thresholds"] == result.label_thresholds

    # Predictions apply the labels whose score reaches the threshold.
    output = tmp_path / "answers.jsonl"
    asked = PredictConfig(
        model_name_or_path=result.model,
        input_file=str(tmp_path / "test.jsonl"),
        output_file=str(output),
    )
    predict(asked)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    for answer in answers:
        expected = [
            n for n, least in result.label_thresholds.items() if answer[f"score_{n}"] > least
        ]
        assert answer["labels"] == expected
    truth = np.array([[n in row["label"] for n in ("ba", "co")] for row in rows[90:]])
    decided = np.array([[n in answer["labels"] for n in ("ba", "co")] for answer in answers])
    f1_micro = f1_score(truth, decided, average="micro")
    assert f1_micro == pytest.approx(result.metrics["test"]["f1_micro"])
    predict(dataclasses.replace(asked, threshold=0.99))
    assert not any(json.loads(line)["labels"] for line in output.read_text().splitlines())

    # Evaluation decides by them too, and says so where they were fitted.
    judged = EvalConfig(
        model_name_or_path=result.model, validation_file=str(tmp_path / "test.jsonl"),
        storage_path=str(tmp_path / "runs"), run_name="eval", resources_per_worker={"CPU": 1},
        against=result.model,
    )  # fmt: skip
    found = evaluate(judged).details
    assert found["splits"]["validation"]["metrics"]["f1_micro"] == pytest.approx(f1_micro)
    assert found["splits"]["validation"]["comparison"]["metrics"]["f1_micro"]["difference"] == 0
    assert found["label_thresholds"] == pytest.approx(result.label_thresholds)
    assert "too high" not in " ".join(found["notes"])
    half = dataclasses.replace(judged, label_thresholds="0.5", run_name="half", against=None)
    scores = np.array([[answer["score_ba"], answer["score_co"]] for answer in answers])
    found = evaluate(half).details
    expected = f1_score(truth, scores > 0.5, average="micro", zero_division=0.0)
    assert found["splits"]["validation"]["metrics"]["f1_micro"] == pytest.approx(expected)
    assert found["label_thresholds"] is None
    assert found["notes"] == []

    # So does the server, for any order and number of labels.
    alone = PREDICTORS["text-classification"].load(result.model)
    (first,) = alone(rows[90]["text"])
    assert {found["label"] for found in first if found["applies"]} == {*answers[0]["labels"]}
    host = load(Path(result.model))
    try:
        with serving(LocalModels({"several": host})) as url:
            body = json.dumps({"inputs": rows[90]["text"], "parameters": {"top_k": 1}}).encode()
            request = Request(f"{url}/models/several", body, {"content-type": "application/json"})
            assert json.load(urlopen(request, timeout=60)) == [first[:1]]
    finally:
        host.close()

    # A run that starts from this model does not take over its thresholds.
    plain = fit(
        dataclasses.replace(
            config, model_name_or_path=result.model, run_name="plain", label_thresholds="0.5"
        )
    )
    assert "label_thresholds" not in json.loads((Path(plain.model) / "config.json").read_text())
    assert plain.label_thresholds == {}
