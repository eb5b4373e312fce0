"""Batch inference: every row once, in order, resumable, on one process and on Ray."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_models import LABELS, bert, classifier
from support.tiny import WORDS, read_lines

from trainyard.errors import UserError
from trainyard.inference.batch import parts, run
from trainyard.inference.batch import table as rows
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.batch.run import predict
from trainyard.inference.tasks.question_answering import QuestionAnswering
from trainyard.inference.tasks.text_classification import TextClassification

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_PART", 16)


def texts(count: int) -> list[str]:
    """Texts of all lengths, in no order; the last but one is too long for the model."""
    made = [" ".join([*WORDS[: i * 7 % 40], WORDS[i % len(WORDS)]]) for i in range(count)]
    return [*made[:-2], "bab " * 90, made[-1]]


def write(folder: Path, kind: str, columns: dict[str, list[str]]) -> Path:
    """One file of each kind that is read."""
    path = folder / f"input{kind}"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "," if kind == ".csv" else "\t"
        lines = [columns, *(row.values() for row in rows)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()


@pytest.mark.parametrize("output", [".csv", ".jsonl", ".parquet"])
def test_several_files_are_one_table_in_order(model: Path, tmp_path: Path, output: str) -> None:
    """A pattern and a path, as in training; `file` says where a row comes from."""
    given = texts(50)
    shares = {"new-2.csv": given[20:40], "new-1.csv": given[:20], "last.csv": given[40:]}
    for name, share in shares.items():
        write(tmp_path, ".csv", {"text": share, "file": ["mine"] * len(share)}).rename(
            tmp_path / name
        )
    result = predict(
        PredictConfig(
            model_name_or_path=str(model),
            input_file=f"{tmp_path}/new-*.csv, {tmp_path}/last.csv",
            output_file=str(tmp_path / f"scores{output}"),
        )
    )
    assert result["rows"] == 50
    if output == ".csv":
        found = list(csv.DictReader((tmp_path / "scores.csv").open()))
    else:
        found = rows_of(tmp_path / f"scores{output}")
    assert [int(row["row"]) for row in found] == list(range(50))
    assert [row["text"].strip() for row in found] == [text.strip() for text in given]
    names = ["new-1.csv"] * 20 + ["new-2.csv"] * 20 + ["last.csv"] * 10
    assert [row["file"] for row in found] == [f"{tmp_path}/{name}" for name in names]
    assert {row["input_file"] for row in found} == {"mine"}


def test_columns_of_several_files_fit_each_other(model: Path, tmp_path: Path) -> None:
    """A column may lack in one file or be empty there, but it has one type."""
    tables = {
        "a": {"text": ["ba"], "id": [1], "note": pa.nulls(1)},
        "b": {"text": ["co"], "id": [2], "note": ["x"], "more": ["y"]},
        "c": {"text": ["da"], "id": ["3"], "note": ["z"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    config = PredictConfig(
        model_name_or_path=str(model),
        input_file=f"{tmp_path}/[ab].parquet",
        output_file=str(tmp_path / "o.parquet"),
    )
    predict(config)
    found = pq.read_table(config.output_file)
    assert [found[name].to_pylist() for name in ("id", "note", "more")] == [
        [1, 2], [None, "x"], [None, "y"],
    ]  # fmt: skip
    every = replace(
        config, input_file=f"{tmp_path}/[abc].parquet", output_file=str(tmp_path / "e.csv")
    )
    told = r"column 'id' is int64 in \S*a\.parquet and string in \S*c\.parquet, but the output has one type"
    with pytest.raises(UserError, match=told):
        predict(every)
    assert predict(replace(every, keep_columns=("note",)))["rows"] == 3
    with pytest.raises(
        UserError, match=r"keep_columns names 'more', but the columns of a\.parquet"
    ):
        predict(replace(every, keep_columns=("more",)))
    with pytest.raises(UserError, match=r"no file matches \S*x\*\.csv; correct the pattern"):
        predict(replace(every, input_file=f"{tmp_path}/x*.csv"))
    (tmp_path / "d.csv").write_text("body\nba\n")
    with pytest.raises(UserError, match=r"d\.csv has no column 'text'"):
        predict(replace(config, input_file=f"{config.input_file},{tmp_path}/d.csv"))
    into = replace(config, output_file=f"{tmp_path}/b.parquet")
    with pytest.raises(UserError, match=r"input_file \S*b\.parquet are the same file"):
        predict(into)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("output", [".jsonl", ".parquet"])
def test_every_row_once_in_order_as_by_itself(
    model: Path, tmp_path: Path, kind: str, output: str
) -> None:
    given = texts(50)
    config = PredictConfig(
        model_name_or_path=str(model),
        input_file=str(write(tmp_path, kind, {"text": given})),
        output_file=str(tmp_path / f"scores{output}"),
        batch_tokens=512,
    )
    result = predict(config)
    found = rows_of(tmp_path / f"scores{output}")
    assert [row["row"] for row in found] == list(range(50))
    assert [row["text"].strip() for row in found] == [text.strip() for text in given]
    alone = TextClassification.load(str(model))
    for row, text in zip(found, given, strict=True):
        (expected,) = alone(text, truncation=True)
        assert row["label"] == expected[0]["label"]
        assert row["score"] == pytest.approx(expected[0]["score"], abs=1e-5)
        by_name = {each["label"]: each["score"] for each in expected}
        assert row["scores"] == pytest.approx([by_name[name] for name in LABELS], abs=1e-5)
    assert (result["rows"], result["errors"], result["truncated_rows"]) == (50, 0, 1)
    assert found[48]["truncated_tokens"] == 28
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"input{kind}", f"scores{output}"]


def test_a_trained_model_predicts_with_the_length_of_its_training(
    model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "trained_max_length": 16}))

    def answers(**given: Any) -> list[dict[str, Any]]:
        source = write(tmp_path, ".csv", {"text": ["bab", "bab " * 40]})
        output = tmp_path / "scores.jsonl"
        predict(
            PredictConfig(
                model_name_or_path=str(tmp_path / "model"), input_file=str(source),
                output_file=str(output), **given,
            )
        )  # fmt: skip
        return rows_of(output)

    assert [row["truncated_tokens"] for row in answers()] == [0, 26]
    short, long = answers(truncation=False)
    assert (short.get("error"), long.get("label")) == (None, None)
    assert "has 42 tokens and only 16 fit" in long["error"]


def test_rows_that_cannot_be_answered_keep_their_place(model: Path, tmp_path: Path) -> None:
    config = PredictConfig(
        model_name_or_path=str(model),
        input_file=str(write(tmp_path, ".jsonl", {"text": texts(20)})),
        output_file=str(tmp_path / "scores.parquet"),
        truncation=False,
    )
    assert predict(config)["errors"] == 1
    found = rows_of(tmp_path / "scores.parquet")
    assert found[18]["label"] is found[18]["score"] is found[18]["scores"] is None
    assert "has 92 tokens and only 64 fit" in found[18]["error"]
    assert all(row["error"] is None and row["label"] for row in found if row["row"] != 18)


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_killed_run_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    common: dict[str, Any] = {
        "model_name_or_path": str(model),
        "input_file": str(write(tmp_path, ".csv", {"text": texts(60)})),
    }
    predict(PredictConfig(**common, output_file=str(tmp_path / "whole.jsonl")))
    config = PredictConfig(**common, output_file=str(tmp_path / "scores.jsonl"))
    real = rows.predict_table
    done: list[Any] = []

    def dies(*args: Any) -> Any:
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(real(*args))
        return done[-1]

    monkeypatch.setattr(run, "predict_table", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(config)
    assert not (tmp_path / "scores.jsonl").exists()
    monkeypatch.setattr(run, "predict_table", real)
    assert predict(config)["resumed_rows"] == stop_after * 16
    assert (tmp_path / "scores.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # Another text is another input: nothing of the old one is taken.
    write(tmp_path, ".csv", {"text": texts(59)})
    assert predict(config)["resumed_rows"] == 0
    assert len(rows_of(tmp_path / "scores.jsonl")) == 59


def test_pairs_labels_and_numbers(tmp_path: Path) -> None:
    pairs = {"first": texts(20), "second": texts(20)[::-1]}
    for problem, labels in (
        ("multi_label_classification", ("a", "b", "c")),
        ("regression", ("score",)),
    ):
        model = classifier(tmp_path / problem, labels, problem_type=problem)
        output = tmp_path / f"{problem}.parquet"
        predict(
            PredictConfig(
                model_name_or_path=str(model),
                input_file=str(write(tmp_path, ".tsv", pairs)),
                output_file=str(output),
                text_column="first",
                text_pair_column="second",
                threshold=0.4,
            )
        )
        alone = TextClassification.load(str(model))
        for row in rows_of(output):
            pair = {"text": row["first"], "text_pair": row["second"]}
            (expected,) = alone(pair, truncation=True)
            if problem == "regression":
                assert row["score"] == pytest.approx(expected[0]["score"], abs=1e-4)
            else:
                apply = {found["label"] for found in expected if found["score"] >= 0.4}
                assert set(row["labels"]) == apply
                assert len(row["scores"]) == 3


def test_other_tasks_answer_in_their_own_shape(tmp_path: Path) -> None:
    model = bert(tmp_path / "qa", "ForQuestionAnswering")
    columns = {"q": ["Where?", "bab"], "c": ["Ada is in London.", "fed gig"]}
    predict(
        PredictConfig(
            model_name_or_path=str(model),
            input_file=str(write(tmp_path, ".jsonl", columns)),
            output_file=str(tmp_path / "answers.jsonl"),
            text_column="q",
            text_pair_column="c",
            parameters='{"top_k": 2}',
        )
    )
    alone = QuestionAnswering.load(str(model))
    for row, question, context in zip(
        rows_of(tmp_path / "answers.jsonl"), columns["q"], columns["c"], strict=True
    ):
        expected = alone({"question": question, "context": context}, top_k=2)
        assert [found["answer"] for found in row["prediction"]] == [e["answer"] for e in expected]


@pytest.mark.usefixtures("cluster")
def test_workers_predict_the_same(model: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "model_name_or_path": str(model),
        "input_file": str(write(tmp_path, ".csv", {"text": texts(100)})),
    }
    predict(PredictConfig(**common, output_file=str(tmp_path / "one.jsonl")))
    two = PredictConfig(
        **common,
        output_file=str(tmp_path / "two.jsonl"),
        num_workers=2,
        resources_per_worker={"CPU": 1},
    )
    assert predict(two)["rows"] == 100
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_the_job_prints_its_line_and_its_mistakes(model: Path, tmp_path: Path) -> None:
    def job(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / "predict.py"), "--model-name-or-path"]
        command += [str(model), "--input-file", str(source), "--output-file", str(output), *more]
        environment = {"PYTHONPATH": str(ROOT / "platform"), "HOME": str(tmp_path), "PATH": ""}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    source, output = write(tmp_path, ".csv", {"text": texts(20)}), tmp_path / "scores.jsonl"
    done = job()
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["job"], line["task"], line["rows"]) == ("predict", "text-classification", 20)
    wrong = job("--text-column", "txt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no column 'txt'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"output_file": "scores.txt"}, "scores.txt must end in .csv, .jsonl, .parquet; rename it"),
        ({"parameters": "top_k=1"}, "parameters is not valid JSON"),
        ({"parameters": "[1]"}, "it must be a JSON object"),
        (
            {"parameters": '{"topk": 1}'},
            "is not a parameter of text-classification; did you mean top_k",
        ),
        ({"model_task": "ner"}, "model_task ner is not known; use one of text-classification"),
        ({"model_task": "fill-mask"}, "lacks .* of the weights that AutoModelForMaskedLM needs"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be at least 1"),
        ({"output_file": "nowhere/scores.jsonl"}, "nowhere of output_file does not exist"),
        ({"output_file": "folder.jsonl"}, "folder.jsonl is a folder; give the path of a file"),
        ({"input_file": "nowhere.csv"}, "nowhere.csv does not exist"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(
    model: Path, tmp_path: Path, changes: dict[str, Any], sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("folder.jsonl").mkdir()
    fields = {
        "model_name_or_path": str(model),
        "input_file": str(write(tmp_path, ".csv", {"text": texts(20)})),
        "output_file": str(tmp_path / "scores.jsonl"),
    } | changes
    with pytest.raises(UserError, match=sentence):
        predict(PredictConfig(**fields))
