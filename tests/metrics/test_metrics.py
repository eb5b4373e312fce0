import json
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

from trainyard.errors import UserError
from trainyard.metrics import METRICS, answers, build_metric, decode, get_metric, with_metrics
from trainyard.tasks import ProblemType, get_task

LABELS = [name for name, row in METRICS.items() if "labels" in row.inputs]
VALUES = [name for name, row in METRICS.items() if "values" in row.inputs]
MULTI_LABEL = [name for name, row in METRICS.items() if "multi_label" in row.inputs]
SCORES = [name for name, row in METRICS.items() if row.of_scores]
ERRORS = {"rmse", "mae", "mse", "log_loss", "brier_score"}

few = settings(max_examples=50, deadline=None)


def pairs(elements: st.SearchStrategy[Any], dtype: Any, *shape: int) -> st.SearchStrategy[Any]:
    """Predictions and references of the same 1 to 30 rows."""
    return st.integers(1, 30).flatmap(
        lambda rows: hnp.arrays(dtype, (2, rows, *shape), elements=elements)
    )


def compute(name: str, predictions: NDArray[Any], references: NDArray[Any]) -> float:
    value = METRICS[name].function(predictions, references)
    assert type(value) is float
    return value


def test_names_are_those_of_evaluates_glue_metric() -> None:
    assert {"accuracy", "f1", "matthews_correlation", "pearson", "spearmanr"} <= set(METRICS)
    assert set(LABELS) | set(VALUES) | set(MULTI_LABEL) | set(SCORES) == set(METRICS)
    assert {name for name, row in METRICS.items() if not row.higher_is_better} == ERRORS
    assert all(row.title for row in METRICS.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 5 / 8),
        ("f1", 2 * 3 / (2 * 3 + 1 + 2)),
        ("f1_macro", (6 / 9 + 4 / 7) / 2),
        ("f1_micro", 5 / 8),
        ("matthews_correlation", (3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4)),
    ],
)
def test_two_classes_by_hand(name: str, expected: float) -> None:
    # 2 true negatives, 1 false positive, 2 false negatives, 3 true positives
    references = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    predictions = np.array([0, 0, 1, 0, 0, 1, 1, 1])
    assert compute(name, predictions, references) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # deviations (-1.5, -.5, .5, 1.5) and (-1.75, -.75, -.75, 3.25)
        ("pearson", 7.5 / math.sqrt(5 * 14.75)),
        # ranks (1, 2, 3, 4) and (1, 2.5, 2.5, 4)
        ("spearmanr", 4.5 / math.sqrt(5 * 4.5)),
        ("rmse", math.sqrt((0 + 0 + 1 + 4) / 4)),
    ],
)
def test_values_by_hand(name: str, expected: float) -> None:
    references, predictions = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 2, 6])
    assert compute(name, predictions, references) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("accuracy", 1 / 3), ("f1_micro", 2 * 2 / (3 + 3)), ("f1_macro", (1 + 2 / 3 + 0 + 0) / 4)],
)
def test_multi_label_by_hand(name: str, expected: float) -> None:
    # The last label neither occurs nor is predicted, and still counts in the mean.
    references = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    predictions = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert compute(name, predictions, references) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [("accuracy", 1 / 2), ("f1_micro", 2 / 3), ("f1_macro", 2 / 3)]
)
def test_one_label_alone_is_not_taken_for_two_classes(name: str, expected: float) -> None:
    references, predictions = np.array([[1], [0], [1], [1]]), np.array([[1], [1], [1], [0]])
    assert compute(name, predictions, references) == pytest.approx(expected, rel=1e-12)


@few
@given(pairs(st.integers(0, 3), np.int64))
def test_labels_agree_with_scikit_learn(rows: NDArray[np.int64]) -> None:
    predictions, references = rows
    expected = {
        "accuracy": (predictions == references).mean(),
        "f1_macro": sklearn_metrics.f1_score(
            references, predictions, average="macro", zero_division=0.0
        ),
        "f1_micro": (predictions == references).mean(),
    }
    if len(np.unique(rows)) > 1:
        expected["matthews_correlation"] = sklearn_metrics.matthews_corrcoef(
            references, predictions
        )
    binary = rows % 2
    assert compute("f1", *binary) == sklearn_metrics.f1_score(*binary[::-1], zero_division=0.0)
    for name, value in expected.items():
        assert compute(name, predictions, references) == pytest.approx(value, abs=1e-12)


@few
@given(pairs(st.floats(-5, 5, width=32), np.float32))
def test_values_agree_with_scipy(rows: NDArray[np.float32]) -> None:
    x, y = rows.astype(np.float64)
    assert compute("rmse", *rows) == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-12)
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        assert compute("pearson", *rows) == scipy_stats.pearsonr(x, y)[0]
        assert compute("spearmanr", *rows) == scipy_stats.spearmanr(x, y)[0]
    else:
        assert compute("pearson", *rows) == compute("spearmanr", *rows) == 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name in METRICS if name not in SCORES])
@pytest.mark.parametrize("rows", [1, 5])
def test_constant_input_has_a_finite_value(name: str, rows: int) -> None:
    undefined = {"matthews_correlation", "pearson", "spearmanr", "cohen_kappa", "r2"}
    ones = np.ones(rows, np.float64 if name in VALUES else np.int64)
    assert compute(name, ones, ones) == (0.0 if name in undefined | ERRORS else 1.0)
    assert compute(name, ones * 0, ones) == (1.0 if name in ERRORS else 0.0)


@pytest.mark.parametrize("name", METRICS)
def test_no_rows_and_unequal_rows_are_refused(name: str) -> None:
    nothing = np.zeros(0, np.int64)
    with pytest.raises(UserError, match=r"^there are no rows to score; a metric needs at least "):
        METRICS[name].function(nothing, nothing)
    with pytest.raises(
        UserError,
        match=r"^predictions have shape \[2\] but references \[3\]; "
        "give one prediction for each reference",
    ):
        METRICS[name].function(np.zeros(2, np.int64), np.zeros(3, np.int64))


def probabilities(rows: int, labels: int, seed: int) -> NDArray[np.float64]:
    """Distributions with many ties."""
    exponential = np.exp(np.random.default_rng(seed).normal(size=(rows, labels)).round(1))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("rows", [8, 60, 400])
def test_one_label_a_row_agrees_with_scikit_learn(classes: int, rows: int) -> None:
    scores = probabilities(rows, classes, rows)
    references = np.random.default_rng(rows).integers(0, classes, rows)
    references[:classes] = range(classes)
    predictions = scores.argmax(axis=1)
    of_second: Any = {"zero_division": 0.0}
    expected = {
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(references, predictions),
        "cohen_kappa": sklearn_metrics.cohen_kappa_score(references, predictions),
        **{
            name: getattr(sklearn_metrics, f"{name.split('_')[0]}_score")(
                references, predictions, average=name.split("_")[1], **of_second
            )
            for name in ("precision_macro", "recall_macro", "f1_weighted")
        },
    }
    one_hot = np.eye(classes)[references]
    from_scores = {
        "log_loss": sklearn_metrics.log_loss(references, scores),
        "roc_auc": sklearn_metrics.roc_auc_score(one_hot, scores),
        "average_precision": sklearn_metrics.average_precision_score(one_hot, scores),
        "brier_score": ((scores - one_hot) ** 2).sum(axis=1).mean(),
    }
    if classes == 2:
        positive = scores[:, 1]
        expected |= {
            "precision": sklearn_metrics.precision_score(references, predictions, **of_second),
            "recall": sklearn_metrics.recall_score(references, predictions, **of_second),
        }
        from_scores |= {
            "roc_auc": sklearn_metrics.roc_auc_score(references, positive),
            "average_precision": sklearn_metrics.average_precision_score(references, positive),
            "brier_score": sklearn_metrics.brier_score_loss(references, positive),
        }
    for name, value in expected.items():
        assert compute(name, predictions, references) == pytest.approx(value, abs=1e-12), name
    for name, value in from_scores.items():
        assert compute(name, scores, references) == pytest.approx(value, abs=1e-9), name


def test_several_labels_a_row_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    references = (rng.random((200, 5)) < 0.2).astype(np.int64)
    references[:, 4] = 0  # ranks nothing, so it takes no part
    scores = (rng.random((200, 5)) * 0.5 + references * 0.2).round(2)
    defined = references[:, :4], scores[:, :4]
    assert compute("roc_auc", scores, references) == pytest.approx(
        sklearn_metrics.roc_auc_score(*defined)
    )
    assert compute("average_precision", scores, references) == pytest.approx(
        sklearn_metrics.average_precision_score(*defined)
    )
    losses = [
        sklearn_metrics.log_loss(references[:, i], scores[:, i], labels=[0, 1]) for i in range(5)
    ]
    assert compute("log_loss", scores, references) == pytest.approx(np.mean(losses), abs=1e-6)
    assert compute("brier_score", scores, references) == pytest.approx(
        ((scores - references) ** 2).mean()
    )
    nothing = np.zeros_like(references)
    assert compute("roc_auc", scores, nothing) == 0.5
    assert compute("average_precision", scores, nothing) == 0.0


def test_values_agree_with_scikit_learn() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert compute("r2", x, y) == pytest.approx(sklearn_metrics.r2_score(y, x))
    assert compute("mae", x, y) == pytest.approx(sklearn_metrics.mean_absolute_error(y, x))
    assert compute("mse", x, y) == pytest.approx(sklearn_metrics.mean_squared_error(y, x))


def test_further_metrics_fit_the_task_or_are_refused() -> None:
    mrpc, mnli, stsb = map(get_task, ("mrpc", "mnli", "stsb"))
    found = with_metrics(mrpc, ["roc_auc", "f1"], "log_loss")
    assert (found.metrics, found.score) == (("accuracy", "f1", "roc_auc", "log_loss"), "log_loss")
    assert with_metrics(mrpc, []) == mrpc
    with pytest.raises(
        UserError, match=r"metric 'f1' \(F1 of the second class\) does not fit .* 3 labels"
    ):
        with_metrics(mnli, ["f1"])
    with pytest.raises(
        UserError, match=r"metric 'roc_auc' .* does not fit regression .*use one of pear"
    ):
        with_metrics(stsb, ["roc_auc"])
    with pytest.raises(UserError, match="unknown metric 'auc'"):
        with_metrics(mrpc, ["auc"])


def test_answers_are_decisions_or_probabilities() -> None:
    logits = np.array([[0.0, 2.0]], np.float32)
    one: ProblemType = "single_label_classification"
    several: ProblemType = "multi_label_classification"
    assert answers("accuracy", one, logits).tolist() == [1]
    assert answers("roc_auc", one, logits)[0, 1] == pytest.approx(1 / (1 + np.exp(-2)))
    assert answers("roc_auc", several, logits)[0] == pytest.approx([0.5, 1 / (1 + np.exp(-2))])


def test_unknown_metric() -> None:
    with pytest.raises(
        UserError, match=r"^unknown metric 'roc_acu'; did you mean 'roc_auc'\? Known"
    ):
        get_metric("roc_acu")
    with pytest.raises(UserError, match=r"^unknown metric 'f2'; known metrics: accuracy, f1, "):
        get_metric("f2")


@pytest.mark.parametrize(
    ("names", "predictions", "references"),
    [
        (LABELS, [0, 1, 1, 0], [0, 1, 0, 0]),
        (VALUES, np.array([0.1, 0.7, 0.4], np.float32), np.array([0.0, 1.0, 0.3])),
        (MULTI_LABEL, np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]], np.float32)),
        (MULTI_LABEL, np.array([[1], [1]]), np.array([[1], [0]])),
        (["accuracy"], np.array([1]), np.array([1])),
        (SCORES, np.array([[0.4, 0.6], [0.7, 0.3]]), np.array([1, 0])),
        (SCORES, np.array([[0.4, 0.6], [0.7, 0.3]]), np.array([[0, 1], [1, 1]])),
    ],
)
def test_build_metric_gives_what_the_functions_give(
    names: list[str], predictions: Any, references: Any
) -> None:
    found = build_metric(names).compute(predictions=predictions, references=references)
    expected = {name: compute(name, *map(np.asarray, (predictions, references))) for name in names}
    assert found == expected
    assert list(found) == names
    assert json.loads(json.dumps(found)) == expected
    assert {type(value) for value in found.values()} == {float}


def test_build_metric_is_an_evaluate_metric_that_collects_batches() -> None:
    import evaluate

    metric = build_metric(["accuracy"])
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    metric.add_batch(predictions=[1], references=[1])
    assert metric.compute() == {"accuracy": 2 / 3}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_build_metric_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(
        UserError,
        match=r"^no kind of prediction fits all requested metrics: f1 \(labels\), "
        r"pearson \(values\); name metrics that share one$",
    ):
        build_metric(["f1", "pearson"])
    with pytest.raises(UserError, match=r"requested metrics: none; name metrics that share one$"):
        build_metric([])
    with pytest.raises(UserError, match=r"^there are no rows to score"):
        build_metric(["accuracy"]).compute(predictions=np.zeros(0), references=np.zeros(0))


def test_build_metric_needs_no_network_and_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evaluate

    def refuse(*_: object) -> None:
        raise AssertionError("a metric must not open a connection")

    home = tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(home))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(home))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = build_metric(["accuracy"]).compute(predictions=[1], references=[1])
    assert found == {"accuracy": 1.0}
    assert list(tmp_path.iterdir()) == []


def test_decode() -> None:
    logits = np.array([[0.1, -2.0, 0.3], [5.0, 0.0, -1.0]], np.float32)
    assert decode("single_label_classification", logits).tolist() == [2, 0]
    assert decode("multi_label_classification", logits).tolist() == [[1, 0, 1], [1, 0, 0]]
    values = decode("regression", logits[:, :1])
    assert values.shape == (2,)
    assert values.tolist() == logits[:, 0].tolist()


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
def test_decode_keeps_a_single_row_a_row(problem_type: Any) -> None:
    assert decode(problem_type, np.zeros((1, 1), np.float32)).shape == (1,)
