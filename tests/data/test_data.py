"""Tokenization: by Ray Data and here alike, cached, counted; own files from end to end."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs_locally import run_locally
from support.tiny import WORDS, write_task

from trainyard.config import TrainConfig
from trainyard.data import tokenize as data
from trainyard.data.splits import find_splits
from trainyard.data.token_table import TableWriter
from trainyard.errors import UserError
from trainyard.models.build import build_tokenizer
from trainyard.models.padding import RIGHT, Padding


@pytest.fixture
def config(tiny_model: Path, task_data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        task="mrpc", data_dir=str(task_data), model_name_or_path=str(tiny_model), max_length=16,
        storage_path=str(tmp_path / "runs"), train_batch_size=16, per_device_train_batch_size=8,
        num_train_epochs=1, learning_rate=1e-3,
    )  # fmt: skip


def test_rows_are_tokenized_as_the_tokenizer_does(config: TrainConfig, tmp_path: Path) -> None:
    splits, tokenizer = find_splits(config), build_tokenizer(config)
    table = data.prepare(splits, tokenizer, config, tmp_path).table("train")
    (batch,) = splits.splits[0].batches()
    whole = tokenizer(batch["text"].to_pylist(), batch["text_pair"].to_pylist())
    expected = tokenizer(
        batch["text"].to_pylist(), batch["text_pair"].to_pylist(), truncation=True, max_length=16
    )
    assert table.labels.tolist() == batch["label"].to_pylist()
    assert table.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    lost = [len(a) - len(b) for a, b in zip(whole["input_ids"], expected["input_ids"], strict=True)]
    assert table.info["truncated_rows"] == sum(n > 0 for n in lost) > 0
    assert table.info["lost_tokens"] == sum(lost)
    rows = np.array([5, 0, 89])
    for padding in (RIGHT, Padding("left")):
        gathered = table.gather(rows, 20, padding)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert gathered[name].dtype == np.int64
            for i, row in enumerate(rows):
                span = padding.span(int(table.lengths[row]), 20)
                assert gathered[name][i, span].tolist() == expected[name][row]
                assert not np.delete(gathered[name][i], span).any()
        assert gathered["labels"].tolist() == table.labels[rows].tolist()


@pytest.fixture
def one_cpu(cluster: Any) -> Iterator[None]:  # noqa: ARG001
    """All CPUs of the cluster but one are taken."""
    from ray.util import placement_group, remove_placement_group

    taken = placement_group([{"CPU": 3}])
    assert taken.wait(60)
    yield
    remove_placement_group(taken)


@pytest.mark.usefixtures("one_cpu")
def test_ray_data_keeps_every_row_in_its_place(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Several files and batches give the table that one process gives, on one CPU too."""
    folder = write_task(tmp_path / "large", train=1000)
    config = dataclasses.replace(config, data_dir=str(folder))
    splits, tokenizer = find_splits(config), build_tokenizer(config)
    here = data.prepare(splits, tokenizer, config, tmp_path / "here").table("train")
    monkeypatch.setattr("trainyard.data.splits.ROWS_PER_BATCH", 100)
    monkeypatch.setattr(data, "ROWS_PER_TASK", 50)
    monkeypatch.setattr(data, "ROWS_PER_FILE", 300)
    parts, append = list[int](), TableWriter.append

    def noted(writer: TableWriter, ids: Any, types: Any, lengths: Any, labels: Any) -> None:
        parts.append(len(lengths))
        append(writer, ids, types, lengths, labels)

    monkeypatch.setattr(TableWriter, "append", noted)
    config = dataclasses.replace(config, tokenize_on="ray")
    prepared = data.prepare(splits, tokenizer, config, tmp_path / "there")
    assert "tokenizing train by Ray Data: --tokenize-on ray" in capsys.readouterr().err
    there = prepared.table("train")
    assert parts[:4] == [300, 300, 300, 100], "memory would grow with the rows"
    assert there.info == here.info
    assert there.lengths.tolist() == here.lengths.tolist()
    assert there.labels.tolist() == here.labels.tolist()
    for file in (tmp_path / "here").rglob("*.bin"):
        assert (tmp_path / "there" / file.relative_to(tmp_path / "here")).read_bytes() == (
            file.read_bytes()
        )


@pytest.mark.parametrize(
    ("rows", "wanted", "nodes", "by_ray", "reason"),
    [
        (100, None, 1, False, "it has at most 131,072 rows, and there is one node"),
        (100, None, 3, True, "the cluster has 3 nodes"),
        (131_073, None, 1, True, "it has more than 131,072 rows"),
        (131_073, "driver", 3, False, "--tokenize-on driver"),
        (100, "ray", 1, True, "--tokenize-on ray"),
    ],
)
def test_the_place_of_tokenization_has_a_reason(
    rows: int,
    wanted: str | None,
    nodes: int,
    by_ray: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "_nodes", lambda: nodes)
    assert data._place(rows, wanted) == (by_ray, reason)


def test_the_place_of_tokenization_is_in_no_identity(config: TrainConfig) -> None:
    assert dataclasses.replace(config, tokenize_on="ray").identity() == config.identity()


def test_the_cache_is_found_again_and_is_as_exact_as_its_fingerprint(
    config: TrainConfig, tmp_path: Path
) -> None:
    splits, tokenizer = find_splits(config), build_tokenizer(config)
    first = data.prepare(splits, tokenizer, config, tmp_path)
    stamp = (first.folders["train"] / "ids.bin").stat().st_mtime_ns
    again = data.prepare(find_splits(config), build_tokenizer(config), config, tmp_path)
    assert again == first
    assert (again.folders["train"] / "ids.bin").stat().st_mtime_ns == stamp
    shorter = dataclasses.replace(config, max_length=12)
    assert data.prepare(splits, tokenizer, shorter, tmp_path).fingerprint != first.fingerprint
    fewer = find_splits(dataclasses.replace(config, max_train_samples=10))
    other = data.prepare(fewer, tokenizer, config, tmp_path)
    assert len(other.table("train")) == 10
    assert other.folders["validation"] == first.folders["validation"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def own(config: TrainConfig, path: Path, **fields: Any) -> TrainConfig:
    return dataclasses.replace(config, task="demo", data_dir=None, train_file=str(path), **fields)


def texts(rows: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=5)) for _ in range(rows)]


def test_own_csv_with_names_as_labels_and_a_part_held_out(
    config: TrainConfig, tmp_path: Path
) -> None:
    path = tmp_path / "mail.csv"
    rows = [f'"{t}, ""quoted""",{"spam" if i % 3 else "ham"}' for i, t in enumerate(texts(60))]
    path.write_text("body,kind\n" + "\n".join(rows))
    outcome, folder = run_locally(own(config, path, text_column="body", label_column="kind"))
    assert outcome.status == "finished"
    assert set(outcome.state.best_evaluation["validation"]["metrics"]) == {
        "accuracy", "f1_macro", "matthews_correlation", "f1",
    }  # fmt: skip
    (checkpoint,) = folder.checkpoints.glob("step-*")
    labels = json.loads((checkpoint / "config.json").read_text())["id2label"]
    assert labels == {"0": "ham", "1": "spam"}
    notes = find_splits(own(config, path, text_column="body", label_column="kind")).notes
    assert "rows of mail.csv (10.0 %), drawn by" in notes[0]


def test_own_regression_and_multi_label(config: TrainConfig, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text(
        "\n".join(json.dumps({"text": t, "label": i / 7}) for i, t in enumerate(texts(50)))
    )
    outcome, _ = run_locally(own(config, numbers, problem_type="regression"))
    assert set(outcome.state.best_evaluation["validation"]["metrics"]) == {
        "pearson", "spearmanr", "rmse",
    }  # fmt: skip
    topics = tmp_path / "topics.csv"
    topics.write_text(
        "text,label\n"
        + "\n".join(f"{t},{'a|b' if i % 2 else 'c'}" for i, t in enumerate(texts(50)))
    )
    outcome, _ = run_locally(
        own(config, topics, problem_type="multi_label_classification", validation_file=str(topics))
    )
    assert set(outcome.state.best_evaluation["validation"]["metrics"]) == {
        "f1_micro", "f1_macro", "accuracy",
    }  # fmt: skip


def test_a_label_seen_only_in_validation_is_named_with_its_line(
    config: TrainConfig, tmp_path: Path
) -> None:
    train, validation = tmp_path / "train.csv", tmp_path / "validation.csv"
    train.write_text("text,label\nba,x\nco,y\n")
    validation.write_text("text,label\nba,x\nco,z\n")
    with pytest.raises(
        UserError, match=r"validation.csv line 3: label 'z' does not occur in train"
    ):
        find_splits(own(config, train, validation_file=str(validation)))


def test_a_test_split_cannot_be_trained_on(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "mrpc").mkdir()
    for split in ("train", "validation"):
        pq.write_table(
            pa.table({"sentence1": ["a"], "sentence2": ["b"], "label": [-1]}),
            tmp_path / f"mrpc/{split}.parquet",
        )
    found = find_splits(dataclasses.replace(config, data_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"row 0: label -1 is not one of task 'mrpc'"):
        list(found.splits[0].batches())


def test_rows_read_in_another_way_are_another_table(config: TrainConfig, tmp_path: Path) -> None:
    """The same file, as rows to predict and as rows to train on; with another padding token."""
    folder = write_task(tmp_path / "glue")
    path = folder / "mrpc/train.parquet"
    rows = pq.read_table(path)
    labels = pa.array([-1, *rows["label"].to_pylist()[1:]], pa.int64())
    pq.write_table(rows.set_column(2, "label", labels), path)
    config, tokenizer = dataclasses.replace(config, data_dir=str(folder)), build_tokenizer(config)
    unlabeled = find_splits(config, ["train"], labeled=False)
    first = data.prepare(unlabeled, tokenizer, config, tmp_path / "cache")
    assert first.table("train").labels[0] == -1
    with pytest.raises(UserError, match=r"row 0: label -1 is not one of task 'mrpc'"):
        data.prepare(find_splits(config, ["train"]), tokenizer, config, tmp_path / "cache")
    tokenizer.pad_token = "[UNK]"
    other = data.prepare(unlabeled, tokenizer, config, tmp_path / "cache")
    assert other.table("train").info["pad_id"] == 1


def test_what_a_killed_process_left_is_cleared_after_a_day(
    config: TrainConfig, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    long_ago = time.time() - 25 * 3600
    for name in (".abandoned-0", ".in-work-1"):
        folder = cache / name / "raw"
        folder.mkdir(parents=True)
        (folder / "000000.parquet").write_bytes(b"x")
        for path in (folder / "000000.parquet", folder, folder.parent):
            os.utime(path, (long_ago, long_ago))
    (cache / ".in-work-1/raw/000001.parquet").write_bytes(b"x")
    data.prepare(find_splits(config), build_tokenizer(config), config, cache)
    assert [path.name for path in cache.glob(".*")] == [".in-work-1"]
