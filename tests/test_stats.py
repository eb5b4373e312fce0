import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from trainyard.errors import UserError
from trainyard.metrics import METRICS
from trainyard.stats import bootstrap_interval, mean_interval, metric_interval, paired_bootstrap

few = settings(max_examples=30, deadline=None)

LABELS = [name for name, row in METRICS.items() if "labels" in row.inputs]
VALUES = [name for name, row in METRICS.items() if "values" in row.inputs]
MULTI_LABEL = [name for name, row in METRICS.items() if "multi_label" in row.inputs]


def pairs(elements: st.SearchStrategy[Any], dtype: Any, *shape: int) -> st.SearchStrategy[Any]:
    return st.integers(1, 40).flatmap(
        lambda rows: hnp.arrays(dtype, (2, rows, *shape), elements=elements)
    )


def agree(names: list[str], predictions: NDArray[Any], references: NDArray[Any]) -> None:
    """A name computes for all resamples at once what its function computes for each in turn."""
    for name in names:
        at_once = bootstrap_interval(name, predictions, references, resamples=10)
        one_by_one = bootstrap_interval(
            METRICS[name].function, predictions, references, resamples=10
        )
        assert at_once == pytest.approx(one_by_one, rel=1e-9, abs=1e-9), name


@few
@given(pairs(st.integers(0, 3), np.int64))
def test_labels_agree_with_the_functions(rows: NDArray[np.int64]) -> None:
    agree([name for name in LABELS if not METRICS[name].two_classes], *rows)


@few
@given(pairs(st.integers(0, 1), np.int64))
def test_two_classes_agree_with_the_functions(rows: NDArray[np.int64]) -> None:
    agree([name for name in LABELS if METRICS[name].two_classes], *rows)


@few
@given(st.integers(2, 40), st.integers(2, 4), st.booleans(), st.integers(0, 9))
def test_scores_agree_with_the_functions(rows: int, labels: int, several: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((rows, labels)).round(1)
    references = rng.integers(0, 2, (rows, labels)) if several else rng.integers(0, labels, rows)
    agree([name for name, row in METRICS.items() if row.of_scores], scores, references)


@few
@given(pairs(st.floats(-5, 5, width=16), np.float32) | pairs(st.sampled_from([0.1, 3]), float))
def test_values_agree_with_the_functions(rows: NDArray[Any]) -> None:
    agree(VALUES, *rows)


@few
@given(pairs(st.integers(0, 1), np.int64, 3) | pairs(st.integers(0, 1), np.int64, 1))
def test_multi_labels_agree_with_the_functions(rows: NDArray[np.int64]) -> None:
    predictions, references = rows
    agree(MULTI_LABEL, predictions, references.astype(np.float32))


def test_interval_of_accuracy_is_the_binomial_one() -> None:
    right = np.arange(400) < 300
    low, high = bootstrap_interval("accuracy", right * 1, np.ones(400, int), resamples=20_000)
    expected = scipy_stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert (low, high) == pytest.approx(tuple(expected), abs=0.0026)


@pytest.mark.parametrize("distinct", [40, 400])
def test_interval_of_a_mean_is_the_normal_one(distinct: int) -> None:
    # Few distinct rows and many are drawn by different code: both are the same bootstrap.
    values = np.tile(np.linspace(0, 1, distinct), 400 // distinct)

    def mean(predictions: NDArray[Any], _: NDArray[Any]) -> float:
        return float(predictions.mean())

    low, high = bootstrap_interval(mean, values, values, resamples=4_000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.002)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        predictions = (rng.random(300) < 0.8).astype(np.int64)
        low, high = bootstrap_interval("accuracy", predictions, np.ones(300, int), seed=trial)
        covered += low <= 0.8 <= high
    assert 180 <= covered <= 199


@pytest.mark.parametrize(("rows", "worst"), [(71, 0.93), (277, 0.939)])
def test_interval_of_accuracy_covers_the_truth_95_times_in_100(rows: int, worst: float) -> None:
    """Exactly: over every number of rows that can be right, of WNLI's and of RTE's size."""
    hits, right = np.arange(rows + 1), np.ones(rows, int)
    ends = np.array([metric_interval("accuracy", (np.arange(rows) < k) * 1, right) for k in hits])
    truths = np.linspace(0.5, 0.95, 91)
    held = (ends[:, :1] <= truths) & (truths <= ends[:, 1:])
    covered = (scipy_stats.binom.pmf(hits[:, None], rows, truths) * held).sum(axis=0)
    assert covered.mean() == pytest.approx(0.95, abs=0.003)
    assert covered.min() > worst
    both = np.stack([right, right], axis=1)
    assert metric_interval("accuracy", both, both) == tuple(ends[-1])


def test_interval_of_other_metrics_is_the_bootstraps() -> None:
    rows = np.random.default_rng(4).integers(0, 2, (2, 100))
    assert metric_interval("f1", *rows, seed=3) == bootstrap_interval("f1", *rows, seed=3)
    with pytest.raises(UserError, match=r"^there are no rows to score"):
        metric_interval("accuracy", rows[0, :0], rows[1, :0])


def test_interval_is_deterministic_python_floats_and_follows_the_seed() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    first = bootstrap_interval("spearmanr", x, y)
    assert bootstrap_interval("spearmanr", x, y) == first
    assert bootstrap_interval("spearmanr", x, y, seed=1) != first
    assert {type(end) for end in first} == {float}
    assert first[0] < METRICS["spearmanr"].function(x, y) < first[1]


def test_interval_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(2)
    predictions, references = rng.integers(0, 3, (2, 100))
    order = rng.permutation(100)
    assert bootstrap_interval("f1_macro", predictions, references) == bootstrap_interval(
        "f1_macro", predictions[order], references[order]
    )


def test_degenerate_rows() -> None:
    ones = np.ones(10, int)
    assert bootstrap_interval("accuracy", ones, ones) == (1.0, 1.0)
    assert bootstrap_interval("pearson", ones * 0.1, np.arange(10.0)) == (0.0, 0.0)
    with pytest.raises(UserError, match=r"^there are no rows to score"):
        bootstrap_interval("accuracy", ones[:0], ones[:0])
    with pytest.raises(UserError, match=r"^predictions have shape \[10\] but references \[9\]"):
        bootstrap_interval("accuracy", ones, ones[:9])
    with pytest.raises(UserError, match=r"^unknown metric 'f2'; known metrics: accuracy"):
        bootstrap_interval("f2", ones, ones)


def fastest(name: str, predictions: NDArray[Any], references: NDArray[Any]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        bootstrap_interval(name, predictions, references)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_it_is_fast() -> None:
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 3, (2, 10_000))
    assert fastest("f1_macro", *classes) < 0.15
    assert fastest("spearmanr", *rng.normal(size=(2, 1_500))) < 1.0


def test_time_is_bounded_by_fewer_resamples() -> None:
    calls = []

    def count(predictions: NDArray[Any], _: NDArray[Any]) -> float:
        calls.append(len(predictions))
        return 0.0

    values = np.arange(60_000.0)
    bootstrap_interval(count, values, values)
    assert calls == [60_000] * 333


def test_mean_interval_is_students() -> None:
    # t of 4 degrees of freedom at 97.5 %: 2.7764; the standard deviation is sqrt(2.5)
    mean, low, high = mean_interval([1, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-6)
    values = [0.81, 0.79, 0.84]
    expected = scipy_stats.t.interval(0.95, 2, np.mean(values), scipy_stats.sem(values))
    assert mean_interval(values)[1:] == pytest.approx(expected, rel=1e-9)
    assert {type(value) for value in mean_interval(values)} == {float}


def test_mean_interval_of_one_and_of_none() -> None:
    assert mean_interval([0.7]) == (0.7, 0.7, 0.7)
    with pytest.raises(UserError, match=r"^there are no values to average; give at least one$"):
        mean_interval([])


def test_paired_comparison_tells_better_from_worse() -> None:
    references = np.arange(500) % 2
    good = np.where(np.arange(500) < 450, references, 1 - references)
    bad = np.where(np.arange(500) < 400, references, 1 - references)
    found = paired_bootstrap("accuracy", good, bad, references)
    assert found.difference == pytest.approx(0.1)
    assert 0 < found.low < 0.1 < found.high
    assert found.verdict == "better"
    back = paired_bootstrap("accuracy", bad, good, references)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.01)
    assert back.verdict == "worse"


def test_paired_comparison_uses_that_the_rows_are_the_same() -> None:
    # 15 rows better and none worse of 500: apart, the two intervals overlap.
    references = np.ones(500, int)
    ours = (np.arange(500) < 455).astype(np.int64)
    theirs = (np.arange(500) < 440).astype(np.int64)
    ours_low, _ = bootstrap_interval("accuracy", ours, references)
    _, theirs_high = bootstrap_interval("accuracy", theirs, references)
    assert ours_low < theirs_high
    assert paired_bootstrap("accuracy", ours, theirs, references).verdict == "better"


def test_paired_comparison_of_equals() -> None:
    references = np.array([0, 1, 1, 0])
    found = paired_bootstrap("f1", references, references, references)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.verdict == "not distinguishable"


@pytest.mark.parametrize("rows", [2, 200])
def test_a_smaller_error_is_better(rows: int) -> None:
    references = np.linspace(0, 1, rows)
    near, far = references + 0.1, references + 0.3
    assert paired_bootstrap("rmse", near, far, references).verdict == "better"
    assert paired_bootstrap("rmse", far, near, references).verdict == "worse"
    assert paired_bootstrap("rmse", near, far, references).difference == pytest.approx(-0.2)


def test_paired_comparison_refuses_unequal_rows() -> None:
    rows = np.ones(3, int)
    with pytest.raises(UserError, match=r"^predictions have shape \[2\] but references \[3\]"):
        paired_bootstrap("accuracy", rows, rows[:2], rows)
