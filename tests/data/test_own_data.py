"""What is said of a user's own files before anything is trained on them."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.tiny import WORDS
from tokenizers.processors import TemplateProcessing

from trainyard.config import TrainConfig
from trainyard.data.own_files import held_out_rows, survey
from trainyard.data.quick_checks import warnings
from trainyard.data.splits import find_splits, sample_rows
from trainyard.data.tokenize import prepare
from trainyard.errors import UserError
from trainyard.models.build import build_tokenizer


def write(folder: Path, labels: list[str]) -> Path:
    path = folder / "mail.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{x}\n" for i, x in enumerate(labels)))
    return path


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "null", "None"])
def test_a_missing_number_is_no_class(tmp_path: Path, missing: str) -> None:
    """Where pandas filled a column of numbers; among names it may be one (Namibia's code)."""
    path = write(tmp_path, ["0", "1", missing, "1", missing])
    with pytest.raises(UserError, match=rf"mail\.csv line 4: label '{missing}' found among numb"):
        find_splits(TrainConfig(train_file=str(path)))
    path = write(tmp_path, ["SA", "SA", missing, missing])
    assert missing in find_splits(TrainConfig(train_file=str(path))).task.labels


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "no --validation-file: 4 of the 40 rows of mail.csv (10.0 %), drawn by --seed 42"),
        ({"data_seed": 7}, "4 of the 40 rows of mail.csv (10.0 %), drawn by --data-seed 7"),
        (
            {"problem_type": "regression"},
            "4 of the 40 rows of mail.csv (10.0 %), drawn by --seed 42",
        ),
        ({"split_version": 1}, "4 of the 40 rows of mail.csv (10.0 %), drawn by --seed 42"),
    ],
    ids=str,
)
def test_the_number_of_held_out_rows_is_reported(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, ["0", "1"] * 20)
    splits = find_splits(TrainConfig(train_file=str(path), **fields))
    assert splits.notes[-1].endswith(f"{said}, are held out")
    rows = [sum(batch.num_rows for batch in split.batches()) for split in splits.splits]
    assert rows == [36, 4]


def test_a_label_that_was_wholly_held_out_is_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    """Several labels a row have no strata, so chance decides."""
    problem: Any = "multi_label_classification"
    config = TrainConfig(
        train_file=str(write(tmp_path, ["a"] * 40)), problem_type=problem, max_length=32,
        model_name_or_path=str(tiny_model),
    )  # fmt: skip
    held_out = held_out_rows(survey(config), config.held_out_seed, config.split_rules)[1]
    write(tmp_path, ["a|b" if row in held_out else "a" for row in range(40)])
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, tmp_path / "cache")
    assert "warning: train has no row with the label b" in warnings(data, splits.task, 32)


def test_test_rows_that_choose_the_model_are_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    for name, numbers in (("train", range(8)), ("held", range(8, 16)), ("test", range(13, 20))):
        lines = "".join(f"{WORDS[n]},{'ab'[n % 2]}\n" for n in numbers)
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines)
    config = TrainConfig(
        train_file=str(tmp_path / "train.csv"), validation_file=str(tmp_path / "held.csv"),
        test_file=str(tmp_path / "test.csv"), max_length=32, model_name_or_path=str(tiny_model),
    )  # fmt: skip
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, tmp_path / "cache")
    leaks = [sentence for sentence in warnings(data, splits.task, 32) if "occur in" in sentence]
    assert leaks == [
        "warning: 3 of 7 rows of test occur in validation too, so its score is too high"
    ]


def test_texts_in_both_parts_of_a_divided_validation_are_warned_of(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = {"train": WORDS[:8], "held": [WORDS[8]] * 20}
    for name, texts in rows.items():
        lines = "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines)
    config = TrainConfig(
        train_file=str(tmp_path / "train.csv"), validation_file=str(tmp_path / "held.csv"),
        test_share=0.5, max_length=32, model_name_or_path=str(tiny_model),
    )  # fmt: skip
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, tmp_path / "cache")
    leaks = [sentence for sentence in warnings(data, splits.task, 32) if "occur in" in sentence]
    assert leaks == [
        "warning: 10 of 10 rows of validation_test occur in validation too, so its score is too high"
    ]


def test_a_run_keeps_the_split_that_it_began_with(tmp_path: Path) -> None:
    """Records of the first version hold no split version: their rows were held out by class."""
    config = TrainConfig(train_file=str(write(tmp_path, ["0", "1"] * 20)))
    new = config.as_begun(None)
    old = {name: value for name, value in asdict(new).items() if name != "split_version"}
    begun = config.as_begun(old)
    assert (new.split_version, begun.split_version) == (2, 1)
    assert begun.identity() == new.identity() == config.identity()
    assert not config.changed_since(old)
    assert config.as_begun(asdict(new)) == new
    # Asked for by name, another split is another run.
    assert new.changed_since(old) == ["split_version 1 -> 2"]
    assert replace(config, split_version=1).changed_since(asdict(new)) == ["split_version 2 -> 1"]

    def held_out(config: TrainConfig) -> list[str]:
        _, validation = find_splits(config).splits
        return [text for batch in validation.batches() for text in batch["text"].to_pylist()]

    assert held_out(begun) == held_out(replace(config, split_version=1)) != held_out(config)


def test_labels_that_look_alike_are_warned_of_and_merged_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, ["Spam", "spam ", "ham", "-1", "caf\u00e9", "cafe\u0301"])
    config = TrainConfig(train_file=str(path), validation_file=str(path))
    notes = find_splits(config).notes
    assert (
        "warning: the labels 'Spam', 'spam' of mail.csv differ only by case, spaces, invisible "
        "characters or Unicode form; --merge-similar-labels makes them one"
    ) in notes
    assert any(note.startswith("warning: -1 is a label in mail.csv") for note in notes)
    merged = replace(config, merge_similar_labels=True, drop_labels=("-1",))
    splits = find_splits(merged)
    assert splits.task.labels == ("caf\u00e9", "ham", "spam")
    assert not splits.notes
    (train, _) = splits.splits
    assert [r for batch in train.batches() for r in batch["label"].to_pylist()] == [2, 2, 1, 0, 0]
    assert train.fingerprint != find_splits(config).splits[0].fingerprint
    dropped = replace(config, merge_similar_labels=True, drop_labels=("SPAM", "-1"))
    assert find_splits(dropped).task.labels == ("caf\u00e9", "ham")


def test_dropped_rows_that_fill_a_batch_or_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, [*["-1"] * 10_001, "spam", "ham"])
    config = TrainConfig(train_file=str(path), validation_file=str(path), drop_labels=("-1",))
    found = find_splits(config)
    assert [batch["label"].to_pylist() for batch in found.splits[0].batches()] == [[1, 0]]
    assert [row["label"] for row in sample_rows(found)] == ["spam", "ham"]
    unlabeled = tmp_path / "unlabeled.csv"
    unlabeled.write_text("text,label\na,-1\nb,-1\n")
    for name in ("train_file", "validation_file", "test_file"):
        changed: dict[str, Any] = {name: str(unlabeled)}
        with pytest.raises(
            UserError, match=r"unlabeled\.csv: every row has a label of --drop-labels \(-1\)"
        ):
            find_splits(replace(config, **changed))


def test_a_split_without_a_token_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n ,x\n ,y\n")
    config = TrainConfig(
        train_file=str(path), validation_file=str(path), model_name_or_path=str(tiny_model),
        max_length=32,
    )  # fmt: skip
    tokenizer = build_tokenizer(config)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A", "$A $B", [])
    with pytest.raises(UserError, match="split 'train': no text has a token, expected at least on"):
        prepare(find_splits(config), tokenizer, config, tmp_path / "cache")


def test_targets_are_dropped_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, ["-1", "0.5", "-1.0", "2"])
    config = TrainConfig(
        train_file=str(path),
        validation_file=str(path),
        problem_type="regression",
        drop_labels=("-1",),
    )
    train, _ = find_splits(config).splits
    assert [r for batch in train.batches() for r in batch["label"].to_pylist()] == [0.5, 2.0]
    with pytest.raises(UserError, match="--drop-labels x is not a number"):
        find_splits(replace(config, drop_labels=("x",)))


def test_a_run_of_the_first_version_reads_labels_as_it_did(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("""text,label\na,"['x', 'y']"\nb,x\n""")
    config = TrainConfig(
        train_file=str(path), validation_file=str(path), problem_type="multi_label_classification"
    )
    first = replace(config, split_version=1)
    assert find_splits(config).task.labels == ("x", "y")
    assert find_splits(first).task.labels == ("['x', 'y']", "x")
    one, other = (find_splits(each).splits[0].fingerprint for each in (config, first))
    assert one != other  # else one would read the other's tokenized labels


def test_names_of_class_labels_are_read_from_several_files(tmp_path: Path) -> None:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neg"])
    )
    for name in ("a", "b"):
        rows = {"text": [f"{name} 1", f"{name} 2"], "label": [1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            str(tmp_path / f"{name}.parquet")
        )
    config = TrainConfig(
        train_file=str(tmp_path / "*.parquet"), validation_file=str(tmp_path / "a.parquet")
    )
    assert find_splits(config).task.labels == ("pos", "neg")


def test_names_of_class_labels_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["pos", "neutral", "neg"])
    )
    rows = {"text": ["a", "b", "c", "d"], "label": [2, 0, 2, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    config = TrainConfig(train_file=str(path), validation_file=str(path))
    now, before = find_splits(config), find_splits(replace(config, split_version=1))
    assert (now.task.labels, before.task.labels) == (("pos", "neg"), ("0", "2"))
    assert now.splits[0].fingerprint != before.splits[0].fingerprint
    ids = [
        [r for batch in found.splits[0].batches() for r in batch["label"].to_pylist()]
        for found in (now, before)
    ]
    assert ids[0] == ids[1] == [1, 0, 1, 0]


@pytest.mark.parametrize("validation", [None, "good.csv"])
def test_training_texts_that_are_all_empty_are_refused(
    tmp_path: Path, validation: str | None
) -> None:
    (tmp_path / "good.csv").write_text("text,label\nba,x\nco,y\n")
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + ",x\n,y\n" * 30)
    config = TrainConfig(
        train_file=str(path), validation_file=validation and str(tmp_path / validation)
    )
    with pytest.raises(
        UserError,
        match=r"^a\.csv: all 60 texts of column 'text' are empty; name the column of texts with --text",
    ):
        find_splits(config)


def test_no_rows_can_be_held_out_of_equal_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text_pair,label\n" + "ba,co,x\nba,co,y\n" * 30)
    fault = r"of 60 training rows, because all texts of column 'text' are the same; name the column"
    with pytest.raises(UserError, match=fault):
        find_splits(TrainConfig(train_file=str(path)))
    config = TrainConfig(train_file=str(path), text_pair_column="text_pair")
    with pytest.raises(UserError, match=r"all texts of columns 'text', 'text_pair' are the same"):
        find_splits(config)
    assert find_splits(replace(config, split_version=1)).splits  # drawn without a look at texts
