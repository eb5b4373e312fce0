"""Which output of a model stands for which label of a task."""

import dataclasses
import itertools

import pytest

from trainyard.errors import UserError
from trainyard.evaluation.models import Judged, column_order
from trainyard.tasks import get_task

MRPC, STSB, MNLI = get_task("mrpc"), get_task("stsb"), get_task("mnli")


def judged(*labels: str) -> Judged:
    return Judged("m", "m", None, labels, None, None)


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
