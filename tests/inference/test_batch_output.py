"""The output of `predict`: the input's columns, one score a label, and three formats."""

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_models import LABELS, bert, classifier
from support.tiny import read_lines

from trainyard.errors import UserError
from trainyard.inference import PredictConfig, predict
from trainyard.inference.batch import config, output, parts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_PART", 2)


def answers(model: Path, source: Path, output: str = "out.jsonl", **fields: Any) -> Any:
    path = source.with_name(output)
    predict(
        PredictConfig(
            model_name_or_path=str(model), input_file=str(source), output_file=str(path), **fields
        )
    )
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return read_lines(path)


SCORES = [f"score_{label}" for label in LABELS]


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_the_inputs_columns_are_kept_next_to_the_answers(
    model: Path, tmp_path: Path, output: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,text,label,note\n7,bana,ham,"a, b"\n8,cola,spam,\n9,"ba ""ba""",ham,c\n')
    found = answers(model, source, output)
    rows = found.to_pylist() if output.endswith("parquet") else found
    assert [row["id"] for row in rows] == ["7", "8", "9"]
    assert [row["input_label"] for row in rows] == ["ham", "spam", "ham"]
    assert [row["note"] for row in rows] == ["a, b", "", "c"]
    assert rows[2]["text"] == 'ba "ba"'
    for row in rows:
        scores = row["scores"] if isinstance(row["scores"], list) else json.loads(row["scores"])
        assert [float(row[name]) for name in SCORES] == scores
        assert row["label"] == LABELS[scores.index(max(scores))]
    names = list(rows[0]) if output != "out.jsonl" else None
    assert names is None or names == [
        "row", "text", "id", "input_label", "note", "label", "score", "scores", *SCORES,
        "truncated_tokens", "error",
    ]  # fmt: skip


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_each_text_of_a_pair_is_written_once(model: Path, tmp_path: Path, output: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text("question,text,answer\nbana,7,cola\ncola,8,bana\n")
    columns = {"text_column": "question", "text_pair_column": "answer"}
    found = answers(model, source, output, **columns)
    rows = found.to_pylist() if output.endswith("parquet") else found
    assert [row["question"] for row in rows] == ["bana", "cola"]
    assert [row["answer"] for row in rows] == ["cola", "bana"]
    assert [row["input_text"] for row in rows] == ["7", "8"]  # not the text that was predicted
    assert not rows[0].keys() & {"text", "text_pair"}
    found = answers(model, source, output, **columns, keep_columns=("answer",))
    rows = found.to_pylist() if output.endswith("parquet") else found
    assert [(row["text"], row["answer"]) for row in rows] == [("bana", "cola"), ("cola", "bana")]
    assert not rows[0].keys() & {"question", "text_pair", "input_text"}


def test_the_second_text_may_be_named_text(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,title,text\n7,bana,cola\n")
    columns = {"text_column": "title", "text_pair_column": "text"}
    (row,) = answers(model, source, "out.csv", **columns)
    assert list(row)[:5] == ["row", "title", "text", "id", "label"]
    assert (row["title"], row["text"]) == ("bana", "cola")
    (row,) = answers(model, source, "out.csv", **columns, keep_columns=("text",))
    assert list(row)[:4] == ["row", "input_text", "text", "label"]
    assert (row["input_text"], row["text"]) == ("bana", "cola")
    source.write_text("id,text_pair,text\n7,bana,cola\n")
    columns = {"text_column": "text_pair", "text_pair_column": "text"}
    (row,) = answers(model, source, "out.csv", **columns)
    assert list(row)[:4] == ["row", "text_pair", "text", "id"]
    assert (row["text_pair"], row["text"]) == ("bana", "cola")


def test_a_text_column_may_be_named_like_an_answer(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("row,label\nbana,x\ncola,y\n")
    for column in ("row", "label"):
        found = answers(model, source, f"{column}.jsonl", text_column=column)
        assert [row["row"] for row in found] == [0, 1]
        assert [row["input_row"] for row in found] == ["bana", "cola"]
        assert [row["input_label"] for row in found] == ["x", "y"]


def test_json_values_keep_their_types(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines: list[dict[str, Any]] = [
        {"text": "bana", "n": 1, "x": 1, "long": 2**60, "yes": True, "tags": ["a"], "mixed": 1},
        {
            "text": "cola",
            "n": 2,
            "x": 0.5,
            "long": 1,
            "yes": False,
            "tags": {"b": None},
            "mixed": "1",
        },
        {"text": 3, "n": None, "late": "é", "half": "\ud800"},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = answers(model, source)
    for line, row in zip(lines, found, strict=True):
        kept = {name: value for name, value in line.items() if value is not None and name != "text"}
        assert {name: row[name] for name in kept} == kept
    assert "is the number 3" in found[2]["error"]
    table = answers(model, source, "out.parquet")
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert {name: types[name] for name in lines[1] if name != "text"} == {
        "n": "int64", "x": "double", "long": "int64", "yes": "bool", "tags": "string",
        "mixed": "string",
    }  # fmt: skip
    assert table["tags"].to_pylist() == ['["a"]', '{"b": null}', None]
    assert table["late"].to_pylist() == [None, None, "é"]
    texts = [row["tags"] for row in answers(model, source, "out.csv")]
    assert texts == ['["a"]', '{"b": null}', ""]


def test_json_holds_no_nan_and_no_infinity(model: Path, tmp_path: Path) -> None:
    def strict(text: str) -> Any:
        raise AssertionError(f"{text} is not JSON")

    source = tmp_path / "in.parquet"
    table = {"text": ["bana", "cola"], "price": [float("nan"), 2.5],
             "list": [[1.0, float("inf")], [2.0]]}  # fmt: skip
    pq.write_table(pa.table(table), source)
    answers(model, source)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=strict) for line in lines)
    assert "price" not in first  # like a null
    assert first["list"] == [1.0, None]
    assert (second["price"], second["list"]) == (2.5, [2.0])
    assert [row["list"] for row in answers(model, source, "out.csv")] == ["[1.0, null]", "[2.0]"]
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "bana", "tags": {"a": NaN}, "x": -Infinity, "half": "\\ud800"}\n')
    answers(model, source)
    row = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=strict)
    assert (row["tags"], row["half"]) == ({"a": None}, "\ud800")
    assert "x" not in row


def test_parquet_columns_keep_their_types(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    day = datetime.date(2026, 11, 30)
    table = pa.table(
        {"text": ["bana", "cola", "fele"], "day": [day] * 3, "raw": [b"\x00", b"\xff", None],
         "list": [[1], [], None], "scores": [1.5, 2.5, None]}
    )  # fmt: skip
    pq.write_table(table, source)
    found = answers(model, source, "out.parquet")
    for name in ("day", "raw", "list"):
        assert found.schema.field(name).type == table.schema.field(name).type
        assert found[name].to_pylist() == table[name].to_pylist()
    assert found["input_scores"].to_pylist() == [1.5, 2.5, None]
    lines = answers(model, source)
    assert lines[0]["day"] == "2026-11-30"
    assert lines[1]["raw"] == "/w=="
    assert [line.get("list") for line in lines] == [[1], [], None]


def not_utf8() -> pa.Array:
    buffers = pa.array([b"d\xc3\xa9", b"caf\xe9", None], pa.binary()).buffers()
    return pa.StringArray.from_buffers(3, buffers[1], buffers[2], buffers[0])


def test_values_that_python_lacks_are_texts(model: Path, tmp_path: Path) -> None:
    """They are in columns that the job does not use; all rows are predicted before they are read."""
    odd, late = not_utf8(), [0, 2**40, None]
    columns = {
        "text": pa.array(["bana", "cola", "fele"]),
        "odd": odd,
        "word": odd.cast(pa.large_string()),
        "list": pa.ListArray.from_arrays([0, 2, 2, 3], odd),
        "map": pa.MapArray.from_arrays([0, 1, 2, 2], pa.array(["a", "b"]), odd.slice(0, 2)),
        "inner": pa.StructArray.from_arrays([odd, odd], names=["a", "b"]),
        "double": pa.StructArray.from_arrays([pa.array([1, 2, 3]), odd], names=["a", "a"]),
        "when": pa.array(late, pa.timestamp("s")),
        "where": pa.array([0, 1, None], pa.timestamp("ms", tz="Nowhere/At")),
        "day": pa.array([0, 2**31 - 1, None], pa.date32()),
        "span": pa.array([1, 2**62, None], pa.duration("s")),
    }
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), source)
    first, second, third = answers(model, source)
    assert [row["odd"] for row in (first, second)] == ["dé", "caf\\xe9"]
    assert [row["word"] for row in (first, second)] == ["dé", "caf\\xe9"]
    assert [row["list"] for row in (first, second, third)] == [["dé", "caf\\xe9"], [], [None]]
    assert [row["map"] for row in (first, second)] == [[["a", "dé"]], [["b", "caf\\xe9"]]]
    assert second["inner"] == {"a": "caf\\xe9", "b": "caf\\xe9"}
    assert [row["double"] for row in (first, third)] == [
        [["a", 1], ["a", "dé"]],
        [["a", 3], ["a", None]],
    ]
    assert [first["when"], second["when"]] == ["1970-01-01 00:00:00", "36812-02-20 00:36:16.000"]
    assert second["where"] == "1970-01-01 00:00:00.001+00:00"
    assert [first["day"], second["day"]] == ["1970-01-01", "5881580-07-11"]
    assert [first["span"], second["span"]] == ["0:00:01", "4611686018427387904 seconds"]
    assert third.keys().isdisjoint({"odd", "word", "when", "where", "day", "span"})
    _, row, last = answers(model, source, "out.csv")
    assert (row["odd"], row["when"], last["odd"]) == ("caf\\xe9", "36812-02-20 00:36:16.000", "")
    assert json.loads(row["inner"]) == second["inner"]
    table = answers(model, source, "out.parquet")
    assert table["odd"].chunk(0)[1].as_buffer().to_pybytes() == b"caf\xe9"


def test_columns_are_narrowed_by_name(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("review,id,other\nbana,1,x\n")
    (row,) = answers(model, source, text_column="review")
    assert (row["review"], row["id"], row["other"]) == ("bana", "1", "x")
    assert "text" not in row
    (row,) = answers(model, source, text_column="review", keep_columns=("id",))
    assert (row["id"], row["text"]) == ("1", "bana")
    assert not row.keys() & {"review", "other"}
    (row,) = answers(model, source, text_column="review", keep_columns=())
    assert row.keys() == {
        "row", "text", "label", "score", "scores", *SCORES, "truncated_tokens"
    }  # fmt: skip
    with pytest.raises(
        UserError, match=r"keep_columns names 'ids', but .* \(did you mean 'id'\?\); give"
    ):
        answers(model, source, text_column="review", keep_columns=("ids",))


def test_a_row_that_cannot_be_read_keeps_its_other_columns(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["bana", None], "id": [1, 2]}), source)
    rows = answers(model, source)
    assert [row["id"] for row in rows] == [1, 2]
    assert "is null" in rows[1]["error"]


def test_a_run_folder_and_a_foreign_file_are_accepted(model: Path, tmp_path: Path) -> None:
    """The file is as a spreadsheet writes it in Western Europe."""
    source = tmp_path / "in.csv"
    source.write_bytes("text;größe\nbana cola;\u20ac 1,5\n".encode("cp1252"))
    (row,) = answers(model.parent, source, delimiter=";", encoding="cp1252")
    assert row["größe"] == "€ 1,5"
    with pytest.raises(UserError, match="such as encoding='cp1252', delimiter=';', or"):
        answers(model, source)


def test_two_ids_with_one_label_are_refused(tmp_path: Path) -> None:
    """`score_<label>` could not say which of the two it is."""
    twice = bert(tmp_path / "twice", "ForSequenceClassification", id2label={0: "a", 1: "b", 2: "a"})
    source = tmp_path / "in.csv"
    source.write_text("text\nbana\n")
    with pytest.raises(UserError, match="calls both 0 and 2 'a'; give each id its own label"):
        answers(twice, source)


def test_every_format_of_the_flags_has_a_writer() -> None:
    assert tuple(output.WRITERS) == config.OUTPUTS


@pytest.mark.parametrize("writer", [output.JsonlWriter, output.CsvWriter])
def test_a_row_of_finite_numbers_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any
) -> None:
    """Looking for NaN takes as long as writing the row."""
    searched: list[Any] = []
    monkeypatch.setattr(output, "_finite", searched.append)
    table = pa.table({"vector": [[0.5, 1.0], [float("nan"), 1.0]], "text": ["a", "b"]})
    with writer(tmp_path / "out", set()) as lines:
        lines.write(table.slice(0, 1))
        assert searched == []
        lines.write(table.slice(1, 1))
    assert len(searched) == 1
