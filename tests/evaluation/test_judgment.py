"""What `evaluate` computes from logits alone: no model, no Ray."""

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from trainyard.data import EMPTY
from trainyard.errors import UserError
from trainyard.evaluation import comparison
from trainyard.evaluation.comparison import SWAPS, compare, mcnemar, permutation_test
from trainyard.evaluation.details import (
    calibration,
    calibration_error,
    column_groups,
    confusion,
    fit_temperature,
    per_class,
    slices,
    worst_rows,
)
from trainyard.evaluation.report import _slices, _with_interval, _worst
from trainyard.evaluation.run import store_temperature
from trainyard.evaluation.scoring import one_answer_words, one_answers, score
from trainyard.inference.tasks.text_classification import stored_temperature
from trainyard.metrics.registry import f1
from trainyard.report.kit import Cell, Table, Text
from trainyard.stats import proportion_interval
from trainyard.tasks import get_task, own_task

MRPC, STSB, MNLI = get_task("mrpc"), get_task("stsb"), get_task("mnli")
TOPICS = own_task(
    text_columns=["text"], label_column="label", labels=["a", "b", "c"],
    problem_type="multi_label_classification",
)  # fmt: skip


def calibrated(rows: int, classes: int, seed: int, sharpness: float = 1.0) -> tuple[Any, Any]:
    """Logits whose softmax is the truth, multiplied by `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, classes))
    drawn = rng.random((rows, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)
    return sharpness * logits, np.minimum(drawn.sum(axis=1), classes - 1)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([1, 1, 1, 0, 1, 0])
    expected = (4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.55)) / 6
    assert calibration_error(confidence, right) == pytest.approx(expected)


def test_one_answer_for_every_row_is_said_in_words() -> None:
    labels = np.array([0, 1, 1])
    always = np.tile([-1.0, 1.0], (3, 1))
    found = {"validation": score(MRPC, always, labels, seed=0)}
    words = one_answer_words(one_answers(found))
    assert words.startswith(
        "the model answers 'equivalent' for every row of validation, so the score"
    )
    assert "one_answer" not in score(MRPC, always * [[1], [1], [-1]], labels, seed=0)
    assert "one_answer" not in score(MRPC, always, np.array([1, 1, 1]), seed=0)  # it may be right
    assert score(STSB, np.full((3, 1), 2.5), labels.astype(float), seed=0)["one_answer"] == "2.5"
    topics = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    answer = score(TOPICS, np.tile([1.0, -1.0, 1.0], (3, 1)), topics, seed=0)["one_answer"]
    assert answer == "a, c"
    assert one_answer_words({}) == ""


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_the_sharpness(sharpness: float) -> None:
    logits, labels = calibrated(6000, 3, seed=1, sharpness=sharpness)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.08)
    found = calibration("single_label_classification", logits, labels, seed=0)
    assert found["after"]["ece"] < 0.02
    assert found["after"]["log_loss"] <= found["before"]["log_loss"] + 1e-3
    expected = {0.4: "underconfident", 3.0: "overconfident"}
    assert found["verdict"] == expected.get(sharpness, "not distinguishable from calibrated")
    assert sum(bin_["rows"] for bin_ in found["reliability"]) == 6000


def test_a_calibrated_model_is_rarely_called_miscalibrated() -> None:
    wrong = 0
    for seed in range(60):
        logits, labels = calibrated(400, 2, seed=seed)
        found = calibration("single_label_classification", logits, labels, seed=seed)
        wrong += found["verdict"] != "not distinguishable from calibrated"
    assert wrong <= 9  # of 60 at 5 %: more than 8 has a probability of 0.3 %


def test_multi_label_calibration_counts_decisions() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 3))
    labels = (rng.random((3000, 3)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    found = calibration("multi_label_classification", 2 * logits, labels, seed=0)
    assert found["temperature"] == pytest.approx(2, rel=0.1)
    assert sum(bin_["rows"] for bin_ in found["reliability"]) == 9000


def test_what_is_stored_is_what_the_predictor_reads(tmp_path: Path) -> None:
    logits, labels = calibrated(500, 2, seed=2, sharpness=2.0)
    found = calibration("single_label_classification", logits, labels, seed=0)
    store_temperature(tmp_path, {"validation": {"rows": 500, "calibration": found}})
    assert stored_temperature(tmp_path) == found["temperature"] == pytest.approx(2, rel=0.3)


def test_a_temperature_on_its_bound_is_not_stored_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(50) % 2
    right, wrong = (
        {"rows": 50, "calibration": calibration(MRPC.problem_type, one_hot(said), labels, seed=0)}
        for said in (labels, 1 - labels)
    )
    with pytest.raises(UserError, match=r"with 100 % of validation right, .*so none is stored"):
        store_temperature(tmp_path, {"validation": right})
    assert not list(tmp_path.iterdir())
    store_temperature(tmp_path, {"validation": wrong})
    assert stored_temperature(tmp_path) == 20
    assert "no better than chance" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"calibration.json cannot be written \(No such file"):
        store_temperature(tmp_path / "absent", {"validation": wrong})


def test_mcnemar_is_the_exact_binomial() -> None:
    found = mcnemar(12, 3)
    assert found["p_value"] == pytest.approx(2 * sum_binomial(15, 3))
    assert found["verdict"] == "better"
    assert mcnemar(3, 12)["verdict"] == "worse"
    assert mcnemar(0, 0)["p_value"] == 1.0
    assert mcnemar(8, 5)["verdict"] == "not distinguishable"


def sum_binomial(n: int, k: int) -> float:
    from math import comb

    return float(sum(comb(n, i) for i in range(k + 1)) / 2**n)


def one_hot(predictions: Any, classes: int = 2) -> Any:
    return 4.0 * np.eye(classes)[predictions]


def test_the_verdict_in_words() -> None:
    labels = np.arange(400) % 2
    good = one_hot(np.where(np.arange(400) < 360, labels, 1 - labels))
    bad = one_hot(np.where(np.arange(400) < 300, labels, 1 - labels))
    found = compare(get_task("rte"), good, bad, labels, names=("A", "B"), seed=0)
    assert found["verdict"].startswith("A is better than B: accuracy +0.1500 (95 % interval +0.")
    assert found["metrics"]["accuracy"]["only_first_right"] == 60
    same = compare(MRPC, good, good, labels, names=("A", "B"), seed=0)
    assert same["verdict"].startswith("A and B cannot be distinguished on these rows: f1 +0.0000")
    assert same["metrics"]["f1"]["test"] == "paired bootstrap and permutation"
    assert same["metrics"]["f1"]["p_value"] == 1.0


def test_the_permutation_test_is_fishers_of_signs() -> None:
    """Of accuracy it counts coins, as McNemar's does; of F1 it is by hand that it swaps rows."""
    labels = np.arange(60) % 2
    better, worse = labels.copy(), labels.copy()
    worse[:6], better[6] = 1 - labels[:6], 1 - labels[6]
    p = permutation_test("accuracy", better, worse, labels, seed=0)
    assert p == pytest.approx(mcnemar(6, 1)["p_value"], abs=0.015)
    found = []
    for swaps in itertools.product([False, True], repeat=7):
        swapped = np.array([*swaps, *[False] * 53])
        sides = np.where(swapped, worse, better), np.where(swapped, better, worse)
        found.append(abs(f1(sides[0], labels) - f1(sides[1], labels)))
    expected = np.mean(np.array(found) >= found[0] - 1e-12)
    assert permutation_test("f1", better, worse, labels, seed=0) == pytest.approx(
        expected, abs=0.015
    )
    topics = np.eye(3, dtype=int)[np.arange(30) % 3]
    assert permutation_test("f1_macro", topics, 1 - topics, topics, seed=0) < 0.001


@pytest.mark.parametrize("groups", [None, np.arange(40_000) // 2])
def test_the_permutation_test_of_many_rows_takes_little_memory(groups: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40_000) % 2
    sure = labels + rng.normal(size=(2, 40_000))
    first, second = np.stack([1 - sure, sure], axis=2)
    tracemalloc.start()
    p = permutation_test("roc_auc", first, second, labels, seed=0, groups=groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.005 < p <= 1
    assert peak < 160 << 20  # one array of 200 swaps is 61 MiB, and there were about eight


@pytest.mark.parametrize("groups", [None, np.arange(300) // 3])
def test_the_permutation_test_does_not_depend_on_its_chunks(
    monkeypatch: pytest.MonkeyPatch, groups: Any
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    sure = labels + rng.normal(scale=[[1.0], [1.2]], size=(2, 300))
    first, second = np.stack([1 - sure, sure], axis=2)

    def p() -> float:
        return permutation_test("roc_auc", first, second, labels, seed=0, groups=groups)

    monkeypatch.setattr(comparison, "CELLS_AT_ONCE", 300 * SWAPS)
    whole = p()
    monkeypatch.setattr(comparison, "CELLS_AT_ONCE", 300 * 7)
    assert 0.001 < p() == whole < 1


@pytest.mark.parametrize("name", ["mrpc", "cola"])
@pytest.mark.parametrize("discordant", [3, 4, 5, 6])
def test_few_rows_that_differ_decide_nothing_too_often(name: str, discordant: int) -> None:
    """Of equal models each such row is won by a coin: of all falls of them at most 5 % may tell."""
    labels = np.arange(120) % 2
    told = 0
    for wins in itertools.product([False, True], repeat=discordant):
        first, second = (np.where(np.arange(120) % 6 == 5, 1 - labels, labels) for _ in range(2))
        first[:discordant] = np.where(wins, labels[:discordant], 1 - labels[:discordant])
        second[:discordant] = 1 - first[:discordant]
        found = compare(
            get_task(name), one_hot(first), one_hot(second), labels, names=("A", "B"), seed=0
        )
        told += "cannot be distinguished" not in found["verdict"]
    assert told / 2**discordant <= 0.05


def test_equal_models_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        labels = rng.integers(0, 2, 300)
        first, second = (
            one_hot(np.where(rng.random(300) < 0.8, labels, 1 - labels)) for _ in range(2)
        )
        found = compare(MRPC, first, second, labels, names=("A", "B"), seed=0)
        told += "cannot be distinguished" not in found["verdict"]
    assert told <= 9


def test_figures_of_each_class_are_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 500)
    logits = rng.normal(0, 1, (500, 3)) + one_hot(labels, 3) / 3
    expected = precision_recall_fscore_support(labels, logits.argmax(1))
    found = per_class(MNLI, logits, labels, seed=0)
    for name, column in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert [row[name] for row in found] == pytest.approx(column)
    for row in found:
        for name in ("precision", "recall", "f1"):
            assert row[f"{name}_interval"][0] < row[name] < row[f"{name}_interval"][1]
    assert confusion(MNLI, logits, labels) == confusion_matrix(labels, logits.argmax(1)).tolist()
    assert confusion(STSB, logits[:, :1], labels) is None


def test_worst_errors_are_the_most_confident_wrong_ones() -> None:
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[3.0, 0], [0, 1], [5, 0], [0, 2]])
    found = worst_rows(MRPC, logits, labels, 10)
    assert [row["row"] for row in found] == [2, 1]
    assert (found[0]["label"], found[0]["prediction"]) == ("equivalent", "not_equivalent")
    assert [row["row"] for row in worst_rows(MRPC, logits, labels, 1)] == [2]
    values = worst_rows(STSB, np.array([[1.0], [4.0]]), np.array([1.5, 1.0]), 1)
    assert values == [{"row": 1, "label": 1.0, "prediction": 4.0, "loss": 3.0}]
    topics = worst_rows(
        TOPICS, np.array([[5.0, -5, 5], [1, 1, 1]]), np.array([[1, 0, 0], [1, 1, 1]]), 9
    )
    assert topics[0]["label"] == ["a"]
    assert topics[0]["prediction"] == ["a", "c"]
    assert len(topics) == 1


def test_a_page_shows_the_beginning_of_a_long_text() -> None:
    errors = [
        {"row": 1, "text": "a" * 100_000, "text_pair": "b" * 1000, "label": "x", "prediction": "y",
         "loss": 1.0},
        {"row": 2, "text": "short", "label": "x", "prediction": "y", "loss": 1.0},
    ]  # fmt: skip
    [table] = _worst({"worst": errors})
    assert isinstance(table, Table)
    cells = [row[1] for row in table.rows]
    assert [(cell.text, cell.note) for cell in cells if isinstance(cell, Cell)] == [
        ("a" * 1000 + "…", "b" * 1000),
        ("short", ""),
    ]


def test_an_interval_without_width_is_not_shown_as_certainty() -> None:
    assert _with_interval(1.0, (1.0, 1.0)).note == "no interval: all resamples of the rows agree"
    assert _with_interval(0.9, (0.85, 1.0)).note == "0.8500 to 1.0000"
    assert _with_interval(0.9, None).note == ""


def test_a_planted_weakness_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 2000)
    kind = rng.choice(["mail", "chat", "web"], 2000)
    right = rng.random(2000) < np.where(kind == "chat", 0.6, 0.9)
    logits = one_hot(np.where(right, labels, 1 - labels))
    lengths = rng.integers(5, 60, 2000)
    found = slices(MRPC, logits, labels, lengths, {"kind": kind.tolist()}, seed=0)
    assert [(row["slice"], row["value"]) for row in found if row["weak"]] == [("kind", "chat")]
    by = {(row["slice"], row["value"]): row for row in found}
    assert len([key for key in by if key[0] == "length"]) == 4
    chat = by["kind", "chat"]
    assert chat["rows"] == (kind == "chat").sum()
    assert chat["error"] == pytest.approx((~right[kind == "chat"]).mean())
    assert chat["error_interval"][0] < 0.4 < chat["error_interval"][1]
    assert "score" not in by["label", "equivalent"]


def test_slices_of_a_regression() -> None:
    rng = np.random.default_rng(6)
    labels = rng.uniform(0, 5, 1000)
    kind = np.arange(1000) % 2
    noise = rng.normal(0, np.where(kind == 1, 1.5, 0.3))
    found = slices(
        STSB,
        (labels + noise)[:, None],
        labels,
        np.full(1000, 9),
        {"kind": [*map(str, kind)]},
        seed=0,
    )
    assert [(row["slice"], row["value"]) for row in found if row["weak"]] == [("kind", "1")]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["x", "y", "1", "2.5", "17"]) | st.integers(0, 99).map(str), min_size=1
    )
)
def test_every_row_is_in_exactly_one_group(values: list[str]) -> None:
    groups = column_groups(values)
    assert len(groups) <= 20
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * len(values)


def test_groups_of_large_and_of_missing_numbers_lose_no_row() -> None:
    stamps = [str(1_700_000_000 + i) for i in range(100)]  # equal in their first six digits
    groups = column_groups([*stamps, "nan", "inf", EMPTY])
    assert len(groups) == 5
    assert groups["(no number)"].tolist() == [False] * 100 + [True] * 3
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * 103


def test_one_row_has_no_interval() -> None:
    columns = {"kind": ["alone", *["other"] * 9]}
    found = slices(STSB, np.ones((10, 1)), np.arange(10) / 2, np.full(10, 9), columns, seed=0)
    assert [row["error_interval"] is None for row in found] == [True, False]
    first, _ = _slices({"slices": [{**found[0], "weak": True}]})
    assert isinstance(first, Text)
    assert first.text.startswith("1 of 1 slices has a larger error than all other rows")


def test_wilson_covers_where_the_bootstrap_collapses() -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(20, 0.97, 2000)
    covered = [low <= 0.97 <= high for low, high in (proportion_interval(int(k), 20) for k in hits)]
    assert np.mean(covered) > 0.9  # all right 54 % of the time: a bootstrap says 1.0 to 1.0 then
    assert proportion_interval(0, 0) == (0.0, 1.0)
