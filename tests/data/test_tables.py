"""Several files as one, tables of a Python session, data sets of the Hub."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from trainyard.config import TrainConfig, as_file
from trainyard.data import find_splits
from trainyard.errors import UserError
from trainyard.evaluation import EvalConfig
from trainyard.inference.batch.config import PredictConfig
from trainyard.tuning import SweepConfig


def rows_of(config: TrainConfig) -> list[list[tuple[str, int]]]:
    return [
        [
            row
            for batch in split.batches()
            for row in zip(batch["text"].to_pylist(), batch["label"].to_pylist(), strict=True)
        ]
        for split in find_splits(config).splits
    ]


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    (tmp_path / "mail-1.csv").write_text("text,label\na,ham\nb,spam\n")
    (tmp_path / "mail-2.jsonl").write_text('{"text": "c", "label": "ham"}\n')
    (tmp_path / "held.csv").write_text("text,label\nd,spam\n")
    return tmp_path


def test_several_files_are_one(mail: Path) -> None:
    held = str(mail / "held.csv")
    expected = [[("a", 0), ("b", 1), ("c", 0)], [("d", 1)]]
    first, second = mail / "mail-1.csv", mail / "mail-2.jsonl"
    for pattern in (str(mail / "mail-*"), f"{first},{second}"):
        config = TrainConfig(train_file=pattern, validation_file=held)
        assert rows_of(config) == expected
    before = find_splits(config).splits[0].fingerprint
    second.write_text('{"text": "c", "label": "spam"}\n')
    assert find_splits(config).splits[0].fingerprint != before
    one = TrainConfig(train_file=str(first), validation_file=held)
    assert find_splits(one).splits[0].fingerprint != before
    second.write_text('{"text": "c"}\n')
    with pytest.raises(UserError, match=r"mail-2\.jsonl line 1 has no column 'label'"):
        find_splits(config)
    with pytest.raises(UserError, match=r"no file matches .*nothing-\*\.csv; correct the pattern"):
        find_splits(TrainConfig(train_file=str(mail / "nothing-*.csv")))


def test_a_list_of_files_may_be_longer_than_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"shard-{number:05d}.csv" for number in range(40)]
    for number, name in enumerate(names):
        Path(name).write_text(f"text,label\na,{('ham', 'spam')[number % 2]}\n")
    config = TrainConfig(train_file=",".join(names), validation_file=names[0])
    assert rows_of(config)[0] == [("a", number % 2) for number in range(40)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.table, datasets.Dataset.from_dict])
def test_tables_of_a_session_are_files(kind: Any) -> None:
    rows = {"text": ["a", "b"], "label": ["ham", "spam"]}
    path = as_file(kind(rows))
    assert as_file(kind(rows)) == path, "equal tables make equal runs"
    assert as_file(kind({**rows, "text": ["a", "c"]})) != path
    assert rows_of(TrainConfig(train_file=path, validation_file=path))[0] == [("a", 0), ("b", 1)]


def polars_frame(rows: Any) -> Any:
    """What of a DataFrame of polars is used; the package is not installed here."""
    return SimpleNamespace(to_arrow=lambda: pa.table(rows))


@pytest.mark.parametrize("kind", [pd.DataFrame, polars_frame, pa.table, datasets.Dataset.from_dict])
def test_configs_take_tables_of_a_session(kind: Any) -> None:
    rows = kind({"text": ["a", "b"], "label": ["ham", "spam"]})
    held = kind({"text": ["d", "e"], "label": ["spam", "ham"]})
    config = TrainConfig(train_file=rows, validation_file=held, test_file=rows)
    by_path = TrainConfig(
        train_file=as_file(rows), validation_file=as_file(held), test_file=as_file(rows)
    )
    assert config == by_path
    assert config.identity() == by_path.identity() == replace(config).identity()
    assert config.identity() != TrainConfig(train_file=held, validation_file=held).identity()
    assert rows_of(config)[:2] == [[("a", 0), ("b", 1)], [("d", 1), ("e", 0)]]
    assert SweepConfig(train_file=rows).train_file == as_file(rows)
    assert EvalConfig(model_name_or_path="m", validation_file=rows).validation_file == as_file(rows)
    prediction = PredictConfig(model_name_or_path="m", input_file=rows, output_file="o.csv")
    assert prediction.input_file == as_file(rows)


def test_a_list_of_paths_is_several_files(mail: Path) -> None:
    paths: Any = [mail / "mail-1.csv", str(mail / "mail-2.jsonl")]
    several = TrainConfig(train_file=paths, validation_file=mail / "held.csv")  # type: ignore[arg-type]
    assert several.train_file == f"{mail}/mail-1.csv,{mail}/mail-2.jsonl"
    assert rows_of(several)[0] == [("a", 0), ("b", 1), ("c", 0)]
    wrong: Any = [pd.DataFrame({"text": ["a"]})]
    with pytest.raises(UserError, match="a list of DataFrame names no data; give a list of paths"):
        TrainConfig(train_file=wrong)
    wrong = {"text": ["a"]}
    with pytest.raises(UserError, match="dict is not a table; give a pandas or polars DataFrame"):
        TrainConfig(train_file=wrong)
    with pytest.raises(
        UserError, match=r"the path b,c\.csv of a list has a comma; rename the file"
    ):
        TrainConfig(train_file=["a.csv", "b,c.csv"])  # type: ignore[arg-type]
    predicted = PredictConfig(model_name_or_path="m", input_file=paths, output_file="o.csv")
    assert list(map(str, predicted.files)) == [f"{mail}/mail-1.csv", f"{mail}/mail-2.jsonl"]


def test_a_config_of_paths_imports_no_library_of_tables() -> None:
    code = (
        "import sys; from trainyard import TrainConfig; TrainConfig(train_file=['a.csv', 'b.csv']); "
        "print({'pandas', 'polars', 'datasets', 'pyarrow'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
    )  # fmt: skip
    assert done.stdout == "set()\n"


def test_names_of_classes_come_with_a_data_set() -> None:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["spam", "ham"])
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    path = as_file(rows)
    assert find_splits(TrainConfig(train_file=path, validation_file=path)).task.labels == (
        "spam",
        "ham",
    )
    with pytest.raises(UserError, match="list is not a table; give a pandas or polars DataFrame"):
        as_file([1])


def test_a_data_set_by_name(mail: Path) -> None:
    folder = mail / "set"
    folder.mkdir()
    (folder / "train.csv").write_text("body,kind\na,ham\nb,spam\n")
    (folder / "validation.csv").write_text("body,kind\nd,spam\n")
    config = TrainConfig(dataset_name=str(folder), text_column="body", label_column="kind")
    assert rows_of(config) == [[("a", 0), ("b", 1)], [("d", 1)]]
    assert config.source == "own"
    assert config.identity() != TrainConfig().identity()
    with pytest.raises(UserError, match=r"^dataset_name and train_file name two sources of data"):
        TrainConfig(dataset_name="a/b", train_file="a.csv")
    with pytest.raises(UserError, match=r"^dataset_config_name needs dataset_name"):
        TrainConfig(dataset_config_name="b")
    with pytest.raises(UserError, match="data set nowhere/nothing could not be loaded"):
        find_splits(TrainConfig(dataset_name="nowhere/nothing"))


@pytest.mark.parametrize(
    ("train", "validation", "reason"),
    [
        ("text,label\na,x\n", "body,kind\na,x\n",
         "its files have different columns: text, label and, in another file, body, kind"),
        ("text,label\na,x\nb,y,z,w\n", "text,label\na,x\n", "Expected 2 fields in line 3, saw 4"),
        ("", "text,label\na,x\n", "No columns to parse from file"),
    ],
    ids=["columns", "fields", "empty"],
)  # fmt: skip
def test_faulty_files_of_a_data_set_are_refused(
    tmp_path: Path, train: str, validation: str, reason: str
) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "validation.csv").write_text(validation)
    with pytest.raises(UserError) as refused:
        find_splits(TrainConfig(dataset_name=str(tmp_path)))
    assert f"data set {tmp_path} could not be loaded (" in str(refused.value)
    assert reason in str(refused.value)


def test_data_is_named_after_its_source() -> None:
    assert TrainConfig(train_file="data/mail.csv").data_name == "mail"
    assert TrainConfig(dataset_name="org/mail").data_name == "org/mail"
    assert TrainConfig(task="mrpc").data_name == "mrpc"
