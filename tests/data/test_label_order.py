"""Which output of a model stands for which label of a task."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import classifier

from trainyard.errors import UserError
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.inputs import (
    EvaluatedModel,
    column_order,
    describe,
    group_of_rows,
    labeled_splits,
    match_labels,
    match_task,
)
from trainyard.tasks import get_task

MRPC, STSB, MNLI = get_task("mrpc"), get_task("stsb"), get_task("mnli")


def judged(*labels: str) -> EvaluatedModel:
    return EvaluatedModel("m", "m", None, labels, None, None)


def test_labels_in_another_order_are_put_right() -> None:
    swapped = judged("CONTRADICTION", "Neutral", "entailment")
    assert column_order(swapped, MNLI) == [2, 1, 0]
    assert column_order(judged("LABEL_0", "LABEL_1"), MRPC) == [0, 1]
    assert column_order(judged(), STSB) == [0]
    with pytest.raises(
        UserError, match=r"answers negative, positive, but task 'mrpc' has the labels"
    ):
        column_order(judged("negative", "positive"), MRPC)
    with pytest.raises(
        UserError, match=r"is a classifier \(a, b\), but task 'stsb' asks for a number"
    ):
        column_order(judged("a", "b"), STSB)
    renamed = dataclasses.replace(MRPC, labels=("not equivalent", "EQUIVALENT"))
    assert column_order(judged("not_equivalent", "equivalent"), renamed) == [0, 1]


@pytest.mark.parametrize(
    "labels", [("да", "нет"), ("C#", "C++", "C"), ("+1", "-1"), ("us", "US"), ("हिंदी", "हद")]
)
def test_labels_that_look_alike_are_told_apart(labels: tuple[str, ...]) -> None:
    """Of a model that has them in any order, never the column of another label."""
    task = dataclasses.replace(MRPC, labels=labels)
    for order in itertools.permutations(range(len(labels))):
        found = column_order(judged(*(labels[i] for i in order)), task)
        assert [order[column] for column in found] == list(range(len(labels)))


@pytest.mark.parametrize(
    ("theirs", "labels"),
    [
        (("c#", "c"), ("C#", "C*")),  # both are c but for case and punctuation
        (("Us", "uS"), ("us", "US")),
        (("yes", "yes"), ("yes", "no")),
        (("ja", "nein"), ("да", "нет")),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    theirs: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=r"give a model that was fine-tuned on it"):
        column_order(judged(*theirs), dataclasses.replace(MRPC, labels=labels))


def test_case_and_punctuation_are_folded_in_any_script() -> None:
    task = dataclasses.replace(MRPC, labels=("да", "не знаю"))
    assert column_order(judged("Не-Знаю", "ДА"), task) == [1, 0]


@pytest.mark.parametrize(
    ("theirs", "labels", "expected"),
    [
        (("LABEL_0", "LABEL_1"), ("1", "0"), {"1": "LABEL_1", "0": "LABEL_0"}),
        (("LABEL_1", "LABEL_0"), ("0", "1"), {"0": "LABEL_0", "1": "LABEL_1"}),  # by name
        (("0", "1", "2"), ("LABEL_2",), {"LABEL_2": "2"}),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),  # 2 has none
        (("LABEL_0", "LABEL_1"), ("negative", "positive"), None),
        (("negative", "positive"), ("0", "1"), None),  # ids say nothing of another file's numbers
        (("Positive", "Negative"), ("positive",), {"positive": "Positive"}),
    ],
)
def test_labels_are_matched_where_only_one_way_is_possible(
    theirs: tuple[str, ...], labels: tuple[str, ...], expected: dict[str, str] | None
) -> None:
    assert match_labels(labels, judged(*theirs)) == expected


def test_a_mapping_decides() -> None:
    given = {"0": "negative", "1": "positive", "2": "positive"}
    model = judged("positive", "negative")
    assert match_labels(["0", "1", "2"], model, given) == given
    assert match_labels(["0", "3"], model, given) is None
    ours = {"not_equivalent": "no", "equivalent": "yes"}
    assert match_task(judged("yes", "no"), MRPC, ours) == ours
    assert column_order(judged("yes", "no"), MRPC, ours) == [1, 0]
    # The other model of a comparison has labels of its own.
    assert column_order(judged("LABEL_0", "LABEL_1"), MRPC, ours) == [0, 1]
    assert column_order(judged("equivalent", "not_equivalent"), MRPC, ours) == [1, 0]
    same = {"not_equivalent": "yes", "equivalent": "yes"}
    with pytest.raises(UserError, match="--label-mapping with the model's label for each"):
        column_order(judged("yes", "no"), MRPC, same)


def rows(path: Path, *labels: str) -> Path:
    path.write_text("text,label\n" + "".join(f"bana cola,{label}\n" for label in labels))
    return path


def splits_of(model: Path, file: Path, **fields: Any) -> Any:
    config = EvalConfig(model_name_or_path=str(model), validation_file=str(file), **fields)
    return labeled_splits(config, describe(str(model)))


def test_a_file_of_numbers_is_read_with_the_labels_of_a_generic_model(tmp_path: Path) -> None:
    model = classifier(tmp_path / "model", ("LABEL_0", "LABEL_1"))
    found = splits_of(model, rows(tmp_path / "rows.csv", "1", "0", "1"))
    (note,) = found.notes
    assert note == (
        "note: the labels of the rows are matched with the model's: 1 is LABEL_1, 0 is LABEL_0"
    )
    (split,) = found.splits
    assert [label for batch in split.batches() for label in batch["label"].to_pylist()] == [1, 0, 1]
    words = rows(tmp_path / "words.csv", "good", "bad", "fine")
    with pytest.raises(
        UserError, match=r"give --label-mapping with .* --label-mapping good LABEL_0"
    ):
        splits_of(model, words)
    with pytest.raises(
        UserError, match=r"words.csv line 3: label 'bad' does not occur in the model"
    ):
        splits_of(model, words, label_mapping={"good": "LABEL_1", "fine": "LABEL_1"})
    with pytest.raises(UserError, match="--label-mapping names the label LABEL_2, but model"):
        splits_of(model, words, label_mapping={"good": "LABEL_2"})
    mapped = {"good": "LABEL_1", "bad": "LABEL_0", "fine": "LABEL_1"}
    (other,) = splits_of(model, words, label_mapping=mapped).splits
    assert np.concatenate([batch["label"].to_numpy() for batch in other.batches()]).tolist() == [
        1, 0, 1,
    ]  # fmt: skip
    assert not splits_of(model, rows(tmp_path / "same.csv", "LABEL_1", "LABEL_0")).notes


def test_a_file_of_several_labels_a_row_is_matched(tmp_path: Path) -> None:
    labels = ("LABEL_0", "LABEL_1", "LABEL_2")
    model = classifier(tmp_path / "model", labels, problem_type="multi_label_classification")
    (split,) = splits_of(model, rows(tmp_path / "rows.csv", "0|2", "1")).splits
    found = [label for batch in split.batches() for label in batch["label"].to_pylist()]
    assert found == [[1, 0, 1], [0, 1, 0]]


def test_several_files_are_evaluated_as_one(tmp_path: Path) -> None:
    model = classifier(tmp_path / "model", ("LABEL_0", "LABEL_1"))
    one = splits_of(model, rows(tmp_path / "more-1.csv", "1", "0")).splits[0].digest
    rows(tmp_path / "more-2.csv", "0")
    for several in (
        "more-*.csv",
        *(f"more-1.csv{comma}{tmp_path / 'more-2.csv'}" for comma in (",", ", ")),
    ):
        found = splits_of(model, tmp_path / several)
        (split,) = found.splits
        labels = [label for batch in split.batches() for label in batch["label"].to_pylist()]
        assert labels == [1, 0, 0]
        assert split.digest != one
        config = EvalConfig(
            model_name_or_path=str(model),
            validation_file=str(tmp_path / several),
            group_column="label",
        )
        groups = group_of_rows(config, found, "validation")
        assert groups is not None
        assert groups.tolist() == ["1", "0", "0"]
