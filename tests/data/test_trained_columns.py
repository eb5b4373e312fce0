"""Predictions and evaluations of a run read the columns that the run was trained on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.evaluation import EvalConfig
from trainyard.evaluation.inputs import describe, labeled_splits, with_delimiter
from trainyard.inference.batch.config import PredictConfig
from trainyard.tuning import SweepConfig

OWN: dict[str, Any] = {"train_file": "mail.csv", "text_column": "message", "label_column": "kind"}
PAIRS: dict[str, Any] = {**OWN, "text_pair_column": "reply"}


def trained(folder: Path, config: TrainConfig | SweepConfig | None, record: str = "run") -> Path:
    """Write the folder of a run or sweep whose model answers no and yes; return the folder."""
    model = {"architectures": ["BertForSequenceClassification"], "model_type": "bert",
             "id2label": {"0": "no", "1": "yes"}}  # fmt: skip
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(model))
    if config is not None:
        known = {"config": asdict(config), "identity": "x", "data_fingerprint": {}, "kind": record}
        (folder / f"{record}.json").write_text(json.dumps(known))
    return folder


def read_by(model: Path, header: str, **given: Any) -> list[str]:
    """Return the text columns that a prediction of a file with these columns reads."""
    file = model.parent / "rows.csv"
    file.write_text(f"{header}\n{','.join('a' for _ in header.split(','))}\n")
    config = PredictConfig(
        model_name_or_path=str(model), input_file=str(file), output_file="o.jsonl", **given
    )
    return config.with_columns().text_columns


@pytest.mark.parametrize("place", ["run", "run/model"])
def test_a_prediction_reads_the_columns_of_the_training(tmp_path: Path, place: str) -> None:
    trained(tmp_path / "run", TrainConfig(**OWN))
    model = tmp_path / place
    (tmp_path / "rows").mkdir(exist_ok=True)
    assert read_by(model, "message,text,kind") == ["message"]
    assert read_by(model, "text,kind") == ["text"]
    assert read_by(model, "message,text", text_column="text") == ["text"]
    assert read_by(model, "message,other", text_pair_column="other") == ["message", "other"]
    assert read_by(model, "body") == ["message"]  # which the reader then misses
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged and does not say .*--text-column"):
        read_by(model, "message")


def test_a_model_of_pairs_needs_both_columns(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", TrainConfig(**PAIRS))
    assert read_by(model, "message,reply") == ["message", "reply"]
    assert read_by(model, "message,answer", text_pair_column="answer") == ["message", "answer"]
    with pytest.raises(
        UserError,
        match=r"the model of run was trained on pairs of texts, and \S*rows.csv has no column 'reply' "
        r"\(did you mean 'Reply'\?\); name the column of the second text with --text-pair-column",
    ):
        read_by(model, "message,Reply")
    task = trained(tmp_path / "task", TrainConfig(task="mrpc"))
    assert read_by(task, "sentence1,sentence2,label") == ["sentence1", "sentence2"]
    assert read_by(task, "sentence1,sentence2", model_task="feature-extraction") == ["text"]


SEMICOLONS: dict[str, Any] = {**OWN, "delimiter": ";"}


@pytest.mark.parametrize(
    ("name", "rows", "given", "delimiter", "texts"),
    [
        ("new.csv", "message;kind\na, b;yes\n", {}, ";", ["message"]),
        ("new.csv", "message,kind\na;b,yes\n", {}, None, ["message"]),
        ("new.csv", "message\na, b\n", {}, ";", ["message"]),
        ("new.csv", "body;kind\na;yes\n", {"text_column": "body"}, ";", ["body"]),
        ("new.csv", "message|kind\na;b|yes\n", {"delimiter": "|"}, "|", ["message"]),
        ("new.tsv", "message\tkind\na;b\tyes\n", {}, None, ["message"]),
        ("new.jsonl", '{"message": "a;b", "kind": "yes"}\n', {}, None, ["message"]),
    ],
)
def test_a_prediction_and_an_evaluation_use_the_delimiter_of_the_training(
    tmp_path: Path, name: str, rows: str, given: dict[str, Any], delimiter: str, texts: list[str]
) -> None:
    model = str(trained(tmp_path / "run", TrainConfig(**SEMICOLONS)))
    file = tmp_path / name
    file.write_text(rows)
    predicted = PredictConfig(
        model_name_or_path=model, input_file=str(file), output_file="o.jsonl", **given
    ).with_columns()
    assert (predicted.delimiter, predicted.text_columns) == (delimiter, texts)
    config = EvalConfig(model_name_or_path=model, validation_file=str(file), **given)
    config = with_delimiter(config, describe(model))
    assert config.delimiter == delimiter
    if "kind" in rows:
        assert labeled_splits(config, describe(model)).task.text_columns == tuple(texts)


def test_the_delimiter_is_that_of_a_training_file_of_the_same_kind(tmp_path: Path) -> None:
    several = {**SEMICOLONS, "train_file": "a.jsonl, b.csv"}
    model = str(trained(tmp_path / "run", TrainConfig(**several)))
    for kind, delimiter in ((".csv", ";"), (".tsv", None)):
        file = tmp_path / f"new{kind}"
        file.write_text("message;x\na;b\n")
        config = EvalConfig(model_name_or_path=model, validation_file=f"{file}")
        assert with_delimiter(config, describe(model)).delimiter == delimiter


def test_a_sweep_and_a_model_without_a_record(tmp_path: Path) -> None:
    sweep = trained(tmp_path / "sweep", SweepConfig(**OWN), "sweep")
    assert read_by(sweep, "message,text") == ["message"]
    (sweep / "run.json").write_text("{}")
    assert read_by(sweep, "message,text") == ["message"]
    bare = trained(tmp_path / "bare", None)
    assert read_by(bare, "message,text") == ["text"]
    assert read_by(bare, "message", text_column="message") == ["message"]


def test_an_evaluation_reads_the_columns_of_the_training(tmp_path: Path) -> None:
    def columns(model: Path, header: str, **given: Any) -> tuple[Any, str]:
        file = tmp_path / "rows.csv"
        values = {"kind": "yes", "label": "no"}
        row = ",".join(values.get(name, "a") for name in header.split(","))
        file.write_text(f"{header}\n{row}\n")
        config = EvalConfig(model_name_or_path=str(model), validation_file=str(file), **given)
        task = labeled_splits(config, describe(str(model))).task
        return task.text_columns, task.label_column

    single = trained(tmp_path / "run", TrainConfig(**OWN))
    assert columns(single, "message,kind") == (("message",), "kind")
    assert columns(single, "message,text,kind,label") == (("message",), "label")
    assert columns(single, "text,kind", label_column="kind") == (("text",), "kind")
    pairs = trained(tmp_path / "pairs", TrainConfig(**PAIRS))
    assert columns(pairs, "message,reply,kind") == (("message", "reply"), "kind")
    with pytest.raises(UserError, match=r"the model of pairs was trained on pairs of texts"):
        columns(pairs, "message,kind")
