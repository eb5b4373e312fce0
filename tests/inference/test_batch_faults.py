"""Batch inference when rows, the model, a file or a second job go wrong."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_models import classifier
from support.tiny import WORDS, read_lines

from trainyard.data.files import read_rows
from trainyard.errors import SupersededError, UserError
from trainyard.inference.batch import parts, run
from trainyard.inference.batch import table as rows
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.batch.run import predict
from trainyard.inference.batch.table import isolated
from trainyard.inference.request_tokens import Row
from trainyard.inference.tasks.text_classification import TextClassification
from trainyard.storage import lease as leases


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier"))


def job(model: Path, source: Path, **more: Any) -> PredictConfig:
    output = str(source.with_name("scores.jsonl"))
    common = {"model_name_or_path": str(model), "input_file": str(source), "output_file": output}
    return PredictConfig(**(common | more))


def lines(folder: Path, count: int) -> Path:
    """A JSONL file whose i-th text has i + 3 tokens."""
    path = folder / "input.jsonl"
    texts = [" ".join(WORDS[: i + 1]) for i in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


NOT_UTF8 = pa.array([b"d\xc3\xa9", b"\xe0", b"ba"], pa.binary()).buffers()

BAD_ROWS: dict[str, tuple[bytes | Any, list[str | None]]] = {
    "a.jsonl": (
        b'{"text": "ba"}\n{"text": null}\n{"text": \n7\n{"text": 5}\n{"txt": "a"}\n'
        b'{"text": "\\ud83d"}\n\n{"text": "co"}\n',
        [None, "line 2: 'text' is null", "line 3: not valid JSON", "line 4: expected a JSON object",
         "line 5: 'text' is the number 5", "line 6 has no column 'text'", "line 7: half of a", None],
    ),
    "b.csv": (b"text,x\nba,1\nco\n\"di\nfe\",1\na,b,c\n", [None, "line 3: 1 fields", None, "line 6: 3 f"]),
    "quotes.csv": (
        b'text,x\nba,1\n"co"x,1\n"d""i",1\nfe,"1" "2"\nga,1\n',
        [None, "line 3: the quotes of the row", None, "line 5: the quotes of the row", None],
    ),
    "c.tsv": (b"text\tx\nba\tco\tdu\nba\t1\n", ["line 2: 3 fields, expected 2", None]),
    "d.parquet": (pa.array(["ba", None, ""]), [None, "row 2: 'text' is null", None]),
    "e.parquet": (
        pa.StringArray.from_buffers(3, *NOT_UTF8[1:]), [None, "row 2: 'text' is not UTF-8", None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_keep_their_place_and_their_error(model: Path, tmp_path: Path, name: str) -> None:
    content, expected = BAD_ROWS[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(pa.table({"text": content}), tmp_path / name)
    result = predict(job(model, tmp_path / name))
    found = read_lines(tmp_path / "scores.jsonl")
    assert [row["row"] for row in found] == list(range(len(expected)))
    for row, error in zip(found, expected, strict=True):
        assert ("error" in row) != ("label" in row)
        assert error is None or error in row["error"], row
    assert result["errors"] == len(expected) - expected.count(None)
    with pytest.raises(UserError, match=next(filter(None, expected))):  # training stays strict
        list(read_rows(tmp_path / name, ["text"], None, "single_label_classification"))


def test_a_pair_of_which_one_text_is_bad(model: Path, tmp_path: Path) -> None:
    table = pa.table({"text": ["ba", None, "ba"], "other": ["co", "co", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert predict(job(model, tmp_path / "a.parquet", text_pair_column="other"))["errors"] == 2
    first, second, third = read_lines(tmp_path / "scores.jsonl")
    assert first["label"]
    assert "'text' is null" in second["error"]
    assert "'other' is null" in third["error"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [("a.jsonl", b'{"txt": "ba"}\n{"text": "ba"}\n', "no column 'text'"),
     ("a.jsonl", b'{"text": "ba"}\n\xff', "not UTF-8"),
     ("a.csv", b'text\nba\n"never closed\n', "the quotes of the row"),
     ("a.csv", b'text\n"he said "hi" and\nleft"\n', "line 2: the quotes of the row"),
     ("a.csv", b'text\n"two\nlines"x"\n', "line 2: the quotes of the row"),
     ("a.csv", b'"te"xt\nba\n', "line 1: the quotes of the row")],
)  # fmt: skip
def test_what_is_wrong_with_the_whole_file_is_refused(
    model: Path, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        predict(job(model, tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "output", ["input.jsonl", "folder/../input.jsonl", "soft.jsonl", "hard.jsonl"]
)
def test_predictions_do_not_replace_their_input(model: Path, tmp_path: Path, output: str) -> None:
    source = lines(tmp_path, 2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "soft.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    before = source.read_bytes()
    with pytest.raises(
        UserError, match=r"input\.jsonl are the same file, which the predictions would"
    ):
        predict(job(model, source, output_file=str(tmp_path / output)))
    assert source.read_bytes() == before


def test_the_model_fails_on_one_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TextClassification.forward
    passes: list[int] = []

    def forward(self: TextClassification, batch: Sequence[Row]) -> list[Any]:
        passes.append(len(batch))
        if any(row.length == 12 for row in batch):
            raise RuntimeError("index out of range\n in self")
        return real(self, batch)

    source = lines(tmp_path, 40)
    predict(job(model, source))
    expected = read_lines(tmp_path / "scores.jsonl")
    monkeypatch.setattr(TextClassification, "forward", forward)
    assert predict(job(model, source))["errors"] == 1
    found = read_lines(tmp_path / "scores.jsonl")
    assert "RuntimeError: index out of range in self" in found[9]["error"]
    for i, (row, other) in enumerate(zip(found, expected, strict=True)):
        assert i == 9 or row["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert len(passes) < 20, "halves, not row by row"


def test_an_answer_that_is_no_number_is_an_error_of_its_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TextClassification.forward

    def forward(self: TextClassification, batch: Sequence[Row]) -> list[Any]:
        found = zip(batch, real(self, batch), strict=True)
        return [logits * np.nan if row.length == 12 else logits for row, logits in found]

    monkeypatch.setattr(TextClassification, "forward", forward)
    assert predict(job(model, lines(tmp_path, 20)))["errors"] == 1
    found = read_lines(tmp_path / "scores.jsonl")
    assert [i for i, row in enumerate(found) if "label" not in row] == [9]
    assert "not JSON compliant" in found[9]["error"]


def test_answers_that_cannot_be_made_are_errors_of_their_rows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TextClassification.decode
    calls: list[int] = []

    def decode(self: TextClassification, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("no")
        return real(self, *arguments)

    monkeypatch.setattr(TextClassification, "decode", decode)
    predict(job(model, lines(tmp_path, 4)))
    errors = [row.get("error", "") for row in read_lines(tmp_path / "scores.jsonl")]
    assert [bool(error) for error in errors] == [False, True, False, False]


def test_a_model_that_fails_on_everything_stops_the_job_and_stores_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, alive = TextClassification.forward, [True]

    def forward(self: TextClassification, batch: Sequence[Row]) -> list[Any]:
        alive[0] = alive[0] and not any(row.length == 12 for row in batch)
        if not alive[0]:
            raise RuntimeError("device-side assert triggered")
        return real(self, batch)

    source = lines(tmp_path, 20)
    monkeypatch.setattr(TextClassification, "forward", forward)
    with pytest.raises(RuntimeError, match="device-side assert"):
        predict(job(model, source))
    monkeypatch.setattr(TextClassification, "forward", real)
    result = predict(job(model, source))
    assert (result["resumed_rows"], result["errors"]) == (0, 0)


def test_halves_down_to_the_item_at_fault() -> None:
    def forward(batch: list[int]) -> list[int]:
        if {3, 4} & set(batch):
            raise ValueError(batch)
        return [2 * item for item in batch]

    found = isolated(forward, list(range(9)))
    assert [item for item in found if isinstance(item, int)] == [0, 2, 4, 10, 12, 14, 16]
    assert [str(item) for item in found[3:5]] == ["[3]", "[4]"]


@pytest.mark.parametrize(
    "name", ["vocab.txt", "merges.txt", "spiece.model", "1_Pooling/config.json"]
)
def test_another_vocabulary_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = classifier(tmp_path / "model")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("one")
    config = job(model, lines(tmp_path, 20))
    real = rows.predict_table
    seen: list[int] = []

    def dies(*arguments: Any) -> Any:
        if seen:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(parts, "ROWS_PER_PART", 8)
    monkeypatch.setattr(run, "predict_table", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(config)
    monkeypatch.setattr(run, "predict_table", real)
    (model / name).write_text("two")
    assert predict(config)["resumed_rows"] == 0
    # What the killed job had left is gone, too.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "input.jsonl",
        "model",
        "scores.jsonl",
    ]


def test_one_job_writes_a_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = job(model, lines(tmp_path, 5)), rows.predict_table
    told: list[str] = []

    def meanwhile(*arguments: Any) -> Any:
        with pytest.raises(UserError) as refused:
            predict(config)
        told.append(str(refused.value))
        return real(*arguments)

    monkeypatch.setattr(run, "predict_table", meanwhile)
    assert predict(config)["rows"] == 5
    assert "scores.jsonl is already being run by process" in told[0]
    assert told[0].endswith("choose another output_file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl", "scores.jsonl"]


@pytest.mark.parametrize("flags", [{}, {"truncation": False}], ids=["same", "other"])
@pytest.mark.parametrize("when", ["while a part is predicted", "before the output is replaced"])
def test_a_suspended_job_that_was_succeeded_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], when: str
) -> None:
    """Its successor has finished, and has deleted the folders of both."""
    source = lines(tmp_path, 20)
    config = job(model, source)
    module, name = (run, "predict_table") if when.startswith("while") else (parts, "_sync")
    real = getattr(module, name)
    left: list[Any] = []

    def suspended(*arguments: Any) -> Any:
        at_end = name == "predict_table" or arguments[0].name == "scores.jsonl"
        if at_end and not left:
            left.append("the successor has started")
            with monkeypatch.context() as patch:
                patch.setattr(leases, "EXPIRY_SECONDS", 0.0)
                predict(job(model, source, **flags))
            left[0] = files()
        return real(*arguments)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    monkeypatch.setattr(parts, "ROWS_PER_PART", 8)
    monkeypatch.setattr(module, name, suspended)
    with pytest.raises(SupersededError, match=r"scores\.jsonl was taken over by another driver"):
        predict(config)
    assert files() == left[0]
    assert set(left[0]) == {"input.jsonl", "scores.jsonl"}
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("flags", [{}, {"truncation": False}], ids=["same", "other"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(PredictConfig, "predictor", 1, id="before the input is read"),
        pytest.param(parts, "_write", 1, id="between raw parts"),
        pytest.param(parts, "_write", 3, id="after the last raw part"),
        pytest.param(parts, "_write", 4, id="between done parts"),
        pytest.param(parts, "_sync", 7, id="before the output is replaced"),
        pytest.param(parts, "sync_folder", 7, id="before the parts are deleted"),
    ],
)
def test_a_suspended_job_leaves_the_work_of_its_successor(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any], owner: Any, name: str, call: int,
) -> None:  # fmt: skip
    """The successor has taken the lease, and is at work."""
    source = lines(tmp_path, 20)
    (tmp_path / "scores.jsonl").write_text("before")
    successor = json.dumps({"id": "b", "pid": 7, "host": "elsewhere"})
    work = parts.Parts(job(model, source, **flags))._folder
    real, calls = getattr(owner, name), [0]
    left: dict[Path, bytes] = {}

    def suspended(*arguments: Any) -> Any:
        result = real(*arguments)
        calls[0] += 1
        if calls[0] == call:
            (tmp_path / ".scores.jsonl-lease.json").write_text(successor)
            work.mkdir(exist_ok=True)
            (work / "part").write_text("of the successor")
            left.update(files())
        return result

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    monkeypatch.setattr(parts, "ROWS_PER_PART", 8)
    monkeypatch.setattr(owner, name, suspended)
    with pytest.raises(SupersededError, match="was taken over by process 7 on elsewhere"):
        predict(job(model, source))
    assert files() == left


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_bad_file_costs_no_successor_its_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeded: bool
) -> None:
    """The job read the file while it was suspended for longer than its lease."""
    work = parts.Parts(job(model, lines(tmp_path, 5)))
    successor = json.dumps({"id": "b", "pid": 7, "host": "elsewhere"})

    def batches() -> Any:
        yield from ()
        if succeeded:
            (tmp_path / ".scores.jsonl-lease.json").write_text(successor)
            (work._folder / "part").write_text("of the successor")
        raise UserError("the file is cut off")

    monkeypatch.setattr(work, "_batches", batches)
    with (
        pytest.raises(UserError, match="taken over" if succeeded else "cut off"),
        work.lease(),
    ):
        work.read()
    assert (work._folder / "part").exists() == work._folder.exists() == succeeded
