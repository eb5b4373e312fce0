"""The data doctor on data that is broken: it reports, or refuses by one sentence, and never dies."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny import WORDS

from trainyard.doctor.data.duplicates import _verified, duplicates
from trainyard.doctor.data.labels import drift
from trainyard.doctor.data.rows import Rows
from trainyard.doctor.data.run import DataDoctorConfig, examine_data
from trainyard.errors import UserError
from trainyard.tasks import get_task

Split = tuple[Sequence[str | None], Sequence[int]]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows are tokenized in this process."""
    monkeypatch.setattr("trainyard.doctor.data.run.ray_session", lambda _: contextlib.nullcontext())


def telling(labels: Sequence[int]) -> Split:
    """Sentences whose words tell their label."""
    rng = np.random.default_rng(len(labels))
    by_label = {-1: WORDS[90:], **{label: WORDS[30 * label :][:30] for label in range(3)}}
    return [" ".join(rng.choice(by_label[label], 12)) for label in labels], labels


def single(rows: int, start: int) -> Split:
    """Texts of which no two share a word."""
    return [f"word{start + i}" for i in range(rows)], [i % 2 for i in range(rows)]


def report_of(config: DataDoctorConfig) -> dict[str, Any]:
    found = examine_data(config)
    assert "<html" in (found.folder / "report.html").read_text()
    report: dict[str, Any] = json.loads((found.folder / "doctor.json").read_text())
    assert found.as_json()["rows"] == {name: row["rows"] for name, row in report["rows"].items()}
    return report


def examined(folder: Path, model: Path, task: str = "cola", **splits: Split) -> dict[str, Any]:
    for name, (texts, labels) in splits.items():
        path = folder / task / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        columns = dict.fromkeys(get_task(task).text_columns, pa.array(texts, pa.string()))
        pq.write_table(pa.table({**columns, "label": pa.array(labels, pa.int64())}), path)
    return report_of(
        DataDoctorConfig(
            task=task, data_dir=str(folder), model_name_or_path=str(model), max_length=40,
            storage_path=str(folder / "runs"),
        )
    )  # fmt: skip


BALANCED, SHORT = [i % 2 for i in range(60)], [i % 2 for i in range(20)]

CASES: dict[str, tuple[str, dict[str, Split], str, dict[str, Any]]] = {
    "a test split alone": (
        "ax", {"test": telling([-1] * 20)}, "", {"skipped": "no row has a label"},
    ),
    "labels withheld in train": (
        "cola", {"train": telling([-1] * 7 + BALANCED), "validation": telling(SHORT)},
        "7 of 67 rows of train have no label (-1)", {"rows": 60, "accuracy": 1.0},
    ),
    "labels withheld in validation": (
        "cola", {"train": telling(BALANCED), "validation": telling([-1, *SHORT])},
        "1 of 21 rows of validation has no label (-1)", {"rows": 60},
    ),
    "all labels of train withheld": (
        "cola", {"train": telling([-1] * 60), "validation": telling(SHORT)},
        "60 of 60 rows of train have no label (-1)", {"skipped": "no row has a label"},
    ),
    "one class": (
        "cola", {"train": telling([1] * 60), "validation": telling(SHORT)},
        "train has no row with the label unacceptable", {"skipped": "all rows have one label"},
    ),
    "the class in the middle is absent": (
        "mnli",
        {"train": telling([0, 2] * 30), "validation_matched": telling([0, 1, 2] * 5),
         "validation_mismatched": telling([0, 1, 2] * 6)},
        "train has no row with the label neutral", {"rows": 60, "accuracy": 1.0},
    ),
    "the first class is absent": (
        "mnli",
        {"train": telling([1, 2] * 30), "validation_matched": telling([0, 1, 2] * 5),
         "validation_mismatched": telling([0, 1, 2] * 6)},
        "train has no row with the label entailment", {"rows": 60, "estimated_wrong": 0},
    ),
    "no word twice": (
        "cola", {"train": single(60, 0), "validation": single(60, 60)},
        "", {"skipped": "no word occurs in two rows"},
    ),
    "empty validation": (
        "cola", {"train": telling(BALANCED), "validation": ([], [])},
        "validation has no rows", {"rows": 60},
    ),
    "empty train": (
        "cola", {"train": ([], []), "validation": telling(SHORT)},
        "train has no rows", {"skipped": "no row has a label"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_broken_is_reported(case: str, tmp_path: Path, tiny_model: Path) -> None:
    task, splits, sentence, labels = CASES[case]
    report = examined(tmp_path, tiny_model, task, **splits)
    severe = [f["sentence"] for f in report["findings"] if f["level"] == "severe"]
    assert any(sentence in found for found in severe) == bool(sentence), severe
    assert report["labels"] == {**report["labels"], **labels}


def test_a_withheld_label_contradicts_none(tmp_path: Path, tiny_model: Path) -> None:
    texts, labels = telling(BALANCED)
    twice = [*texts, texts[0]], [*labels, -1]
    report = examined(tmp_path, tiny_model, train=twice, validation=telling(SHORT))
    assert report["contradictions"]["texts"] == 0
    assert sum(report["balance"]["train"].values()) == 60
    assert 60 not in report["labels"]["ranking"]


def test_a_text_that_is_null_is_refused_by_its_row(tmp_path: Path, tiny_model: Path) -> None:
    texts, labels = telling(BALANCED)
    spoilt = [None if i == 7 else text for i, text in enumerate(texts)], labels
    with pytest.raises(UserError, match=r"cola/train.parquet row 7: column 'sentence' is null"):
        examined(tmp_path, tiny_model, train=spoilt, validation=telling(SHORT))


def test_rows_that_repeat_are_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counting(*arguments: Any) -> Any:
        compared.append(len(arguments[2]))
        return _verified(*arguments)

    def rows(name: str, texts: list[str]) -> Rows:
        return Rows(name, (texts,), np.zeros(len(texts), np.int64))

    monkeypatch.setattr("trainyard.doctor.data.duplicates._verified", counting)
    text, near = " ".join(WORDS[:10]), [" ".join([*WORDS[:9], f"new{i}"]) for i in range(4)]
    train = rows("train", [text] * 20_000 + near[:3] + [f"word{i}" for i in range(97)])
    validation = rows("validation", [near[3]] * 5_000 + [text.upper()] * 5_000)
    found = duplicates([train, validation], 0.8, 10)
    counts = [found["inside"]["train"], found["inside"]["validation"], found["between"][0]]
    assert [(c["exact"], c["normalized"], c["near"]) for c in counts] == [
        (19_999, 19_999, 20_003), (9_998, 9_998, 10_000), (0, 5_000, 5_000),
    ]  # fmt: skip
    assert sum(compared) < 10_000  # of 200 million pairs of equal rows in train alone


def test_the_page_shows_the_beginning_of_a_long_text(tmp_path: Path, tiny_model: Path) -> None:
    texts, labels = telling(BALANCED)
    texts = ["\x07" + "long" * 50_000, *texts[1:]]
    report = examined(tmp_path, tiny_model, train=(texts, labels), validation=telling(SHORT))
    assert report["texts"]["train"]["control_characters"]["examples"][0]["text"] == texts[0]
    page = next(tmp_path.glob("runs/*/report.html")).read_text()
    assert "longlon…" in page
    assert "long" * 250 not in page


def test_a_target_of_minus_one_is_a_target(tmp_path: Path, tiny_model: Path) -> None:
    texts, _ = telling(BALANCED)
    lines = [f"{text},{-1 if i % 2 else i}" for i, text in enumerate(texts)]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *lines]))
    report = report_of(
        DataDoctorConfig(
            train_file=str(tmp_path / "own.csv"), problem_type="regression", max_length=40,
            model_name_or_path=str(tiny_model), storage_path=str(tmp_path / "runs"),
        )
    )  # fmt: skip
    assert [row["missing_labels"] for row in report["rows"].values()] == [0, 0]
    assert report["balance"]["train"]["low"] == -1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"data_dir": "glue"}, r"data_dir glue would not be read: the rows of task 'demo' are"),
        ({"run_name": "../x"}, r"run_name is '../x'; it must be of letters"),
        ({"num_examples": -1}, r"num_examples is -1; it must be at least 0"),
        ({"label_column": "y"}, r"label_column describes your own data"),
    ],
)
def test_flags_that_mean_nothing(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DataDoctorConfig(**flags)


def test_a_word_of_the_other_text_is_not_unseen() -> None:
    train = Rows("train", (["a b"], ["c d"]), np.zeros(1, np.int64))
    other = Rows("validation", (["c d"], ["a new"]), np.zeros(1, np.int64))
    assert drift(get_task("mrpc"), train, other, seed=0)["unseen_words"] == 0.25


def test_a_rare_label_is_counted_against_rows(tmp_path: Path, tiny_model: Path) -> None:
    """Not against labels, of which a row may have several."""
    texts = [f"{text} {i}" for i, text in enumerate(telling(BALANCED * 4)[0])]
    lines = [json.dumps({"text": text, "label": ["a", "b", "c", "d"] + ["rare"] * (i < 4)})
             for i, text in enumerate(texts)]  # fmt: skip
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    report = report_of(
        DataDoctorConfig(
            train_file=str(tmp_path / "own.jsonl"), problem_type="multi_label_classification",
            validation_file=str(tmp_path / "own.jsonl"), max_length=40,
            model_name_or_path=str(tiny_model), storage_path=str(tmp_path / "runs"),
        )
    )  # fmt: skip
    said = [f["sentence"] for f in report["findings"] if f["check"] == "balance"]
    assert said == []  # 4 of 240 rows are more than 1 %, and 4 of 964 labels less


def test_a_report_is_named_after_its_file(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("mail", "held"):
        rows = "".join(f"{word} {name},{'ab'[n % 2]}\n" for n, word in enumerate(WORDS[:20]))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    found = examine_data(
        DataDoctorConfig(
            train_file=str(tmp_path / "mail.csv"), validation_file=str(tmp_path / "held.csv"),
            model_name_or_path=str(tiny_model), max_length=32, storage_path=str(tmp_path),
        )
    )  # fmt: skip
    line = found.as_json()
    assert (line["task"], line["data_name"]) == ("own", "mail")
    assert "Data doctor: mail" in (found.folder / "report.html").read_text()
