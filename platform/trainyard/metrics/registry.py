"""Metrics as pure functions of numpy arrays, and as one offline `evaluate.Metric`.

A metric is one entry of METRICS, from which intervals, comparisons, sweeps and pages read its
properties. GLUE's metrics are named as in the `glue` metric of `evaluate`. Values are always Python
floats, because numpy scalars in a worker's report cannot be stored as JSON.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.metrics.resampled import (
    Builder,
    Statistic,
    average_precision,
    brier_score,
    by_rank,
    correlation,
    f1_by_class,
    kappa,
    log_loss,
    matthews,
    mean_over_classes,
    of_counts,
    of_second_class,
    of_values,
    precision_by_class,
    r2,
    ranks,
    ratio,
    recall_by_class,
    roc_auc,
)
from trainyard.tasks import ProblemType, Task

if TYPE_CHECKING:
    import evaluate

MetricFunction = Callable[[NDArray[Any], NDArray[Any]], float]
"""(predictions, references) -> value; for the shapes, see `Metric.inputs`."""
Input = Literal["labels", "values", "multi_label", "scores", "multi_label_scores"]
INPUTS: dict["ProblemType", tuple[Input, ...]] = {
    "single_label_classification": ("labels", "scores"),
    "multi_label_classification": ("multi_label", "multi_label_scores"),
    "regression": ("values",),
}
"""Kinds of metric input that the predictions of each problem type can provide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Metric with the properties that intervals, comparisons and pages need."""

    title: str
    """Name on pages."""
    function: MetricFunction
    """(predictions, references) -> value; raises UserError for no rows or different shapes."""
    inputs: tuple[Input, ...]
    """Accepted inputs: class indices or values of shape [rows], 0/1 of [rows, labels], or
    probabilities of [rows, labels]."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Least and greatest possible value; the intervals of a sweep's scores are clipped to them."""
    higher_is_better: bool = True
    """False for an error or a loss."""
    counts_rows: bool = False
    """True for a share of correct rows: Wilson's interval and McNemar's test apply to it."""
    two_classes: bool = False
    """True for a metric of the second class, defined only for two classes."""
    statistic: Builder | None = None
    """(predictions, references) of distinct rows -> Statistic, for the bootstrap interval.
    Default: call `function` on each resample, which is slower."""

    def weighted(self, predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        """Build the `Statistic` of distinct rows: a function from weights to metric values."""
        build = self.statistic or repeated(self.function)
        return build(predictions, references)

    @property
    def of_scores(self) -> bool:
        """True if the metric takes probabilities instead of decisions."""
        return self.inputs[0] in ("scores", "multi_label_scores")


def once(statistic: Builder) -> MetricFunction:
    """Turn a `Metric.statistic` into a metric function that gives each row the weight 1."""

    def function(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        check_rows(predictions, references)
        return float(statistic(predictions, references)(np.ones((1, len(references))))[0])

    return function


def repeated(function: MetricFunction) -> Builder:
    """Turn a metric function into a `Metric.statistic` that repeats each row by its weight."""

    def build(predictions: NDArray[Any], references: NDArray[Any]) -> Statistic:
        return lambda weights: np.array(
            [
                function(
                    np.repeat(predictions, times, axis=0), np.repeat(references, times, axis=0)
                )
                for times in weights.astype(np.int64)
            ]
        )

    return build


def accuracy(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Share of correct rows; all labels of a multi-label row must be correct."""
    from sklearn.metrics import accuracy_score

    check_rows(predictions, references)
    return float(accuracy_score(references, predictions))


def f1(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 of class 1 against class 0; 0 if neither predictions nor references have class 1."""
    return _f1(predictions, references, "binary")


def f1_macro(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Mean F1 over the classes that occur in either array, or over all labels if multi-label."""
    return _f1(predictions, references, "macro")


def f1_micro(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 over all decisions together; equals accuracy for single-label rows."""
    return _f1(predictions, references, "micro")


def _f1(predictions: NDArray[Any], references: NDArray[Any], average: str) -> float:
    from sklearn.metrics import f1_score

    check_rows(predictions, references)
    if references.ndim == 2 and references.shape[1] == 1:
        # scikit-learn reads a one-column matrix as two classes and would average over both.
        average = "binary"
    return float(f1_score(references, predictions, average=average, zero_division=0.0))


def matthews_correlation(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); a constant side gives 0."""
    from sklearn.metrics import matthews_corrcoef

    check_rows(predictions, references)
    if is_constant(predictions) or is_constant(references):
        # 0/0: scikit-learn returns 0 too, but may warn.
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def spearmanr(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Spearman's rank correlation; ties get their mean rank, and a constant side gives 0."""
    from scipy.stats import spearmanr as rank_correlation

    return _correlation(rank_correlation, predictions, references)


def _correlation(
    function: Callable[..., Any], predictions: NDArray[Any], references: NDArray[Any]
) -> float:
    check_rows(predictions, references)
    if is_constant(predictions) or is_constant(references):
        # SciPy returns NaN, which a scheduler cannot compare. A constant prediction carries no
        # information, so its correlation counts as 0.
        return 0.0
    # In float64: SciPy would compute in the float32 of the logits.
    return float(function(predictions.astype(np.float64), references.astype(np.float64)).statistic)


def rmse(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Root mean squared error, in the unit of the target."""
    from sklearn.metrics import root_mean_squared_error

    check_rows(predictions, references)
    return float(
        root_mean_squared_error(references.astype(np.float64), predictions.astype(np.float64))
    )


_SHARE, _ERROR = (0.0, 1.0), (0.0, np.inf)
_LABELS: tuple[Input, ...] = ("labels",)
_DECISIONS: tuple[Input, ...] = ("labels", "multi_label")
_SCORES: tuple[Input, ...] = ("scores", "multi_label_scores")

METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        title="accuracy",
        function=accuracy,
        inputs=("labels", "multi_label"),
        counts_rows=True,
        statistic=of_counts(lambda c: c.exact / c.rows),
    ),
    "f1": Metric(
        title="F1 of the second class",
        function=f1,
        inputs=("labels",),
        two_classes=True,
        statistic=of_second_class(f1_by_class),
    ),
    "f1_macro": Metric(
        title="F1, mean over classes",
        function=f1_macro,
        inputs=("labels", "multi_label"),
        statistic=mean_over_classes(f1_by_class),
    ),
    "f1_micro": Metric(
        title="F1 over all decisions",
        function=f1_micro,
        inputs=("labels", "multi_label"),
        statistic=of_counts(
            lambda c: ratio(2 * c.hits.sum(axis=1), (c.predicted + c.actual).sum(axis=1))
        ),
    ),
    "matthews_correlation": Metric(
        title="Matthews correlation",
        function=matthews_correlation,
        inputs=("labels",),
        bounds=(-1.0, 1.0),
        statistic=of_counts(matthews),
    ),
    "pearson": Metric(
        title="Pearson correlation",
        function=pearson,
        inputs=("values",),
        bounds=(-1.0, 1.0),
        statistic=of_values(correlation),
    ),
    "spearmanr": Metric(
        title="Spearman rank correlation",
        function=spearmanr,
        inputs=("values",),
        bounds=(-1.0, 1.0),
        statistic=of_values(lambda w, x, y: correlation(w, ranks(w, x), ranks(w, y))),
    ),
    "rmse": Metric(
        title="root mean squared error",
        function=rmse,
        inputs=("values",),
        bounds=(0.0, np.inf),
        higher_is_better=False,
        statistic=of_values(lambda w, x, y: np.sqrt(w @ (x - y) ** 2 / w.sum(axis=1))),
    ),
}


METRICS |= {
    name: Metric(
        title=title,
        function=once(statistic),
        statistic=statistic,
        inputs=inputs,
        bounds=bounds,
        higher_is_better=higher,
        two_classes=two_classes,
    )
    for name, title, statistic, inputs, bounds, higher, two_classes in (
        ("precision", "precision of the second class", of_second_class(precision_by_class), _LABELS,
         _SHARE, True, True),
        ("recall", "recall of the second class", of_second_class(recall_by_class), _LABELS,
         _SHARE, True, True),
        ("precision_macro", "precision, mean over classes", mean_over_classes(precision_by_class),
         _DECISIONS, _SHARE, True, False),
        ("recall_macro", "recall, mean over classes", mean_over_classes(recall_by_class),
         _DECISIONS, _SHARE, True, False),
        ("f1_weighted", "F1, weighted by rows of the class",
         of_counts(lambda c: ratio((c.actual * f1_by_class(c)).sum(axis=1), c.actual.sum(axis=1))),
         _DECISIONS, _SHARE, True, False),
        ("balanced_accuracy", "balanced accuracy",
         of_counts(lambda c: recall_by_class(c).sum(axis=1) / (c.actual > 0).sum(axis=1)),
         _LABELS, _SHARE, True, False),
        ("cohen_kappa", "Cohen's kappa", of_counts(kappa), _LABELS, (-1.0, 1.0), True, False),
        ("roc_auc", "area under the ROC curve", by_rank(roc_auc, 0.5), _SCORES, _SHARE, True, False),
        ("average_precision", "average precision", by_rank(average_precision, 0.0), _SCORES,
         _SHARE, True, False),
        ("log_loss", "log loss", log_loss, _SCORES, _ERROR, False, False),
        ("brier_score", "Brier score", brier_score, _SCORES, (0.0, 2.0), False, False),
        ("mae", "mean absolute error",
         of_values(lambda w, x, y: w @ np.abs(x - y) / w.sum(axis=1)), ("values",), _ERROR, False, False),
        ("mse", "mean squared error",
         of_values(lambda w, x, y: w @ (x - y) ** 2 / w.sum(axis=1)), ("values",), _ERROR, False, False),
        ("r2", "coefficient of determination", of_values(r2), ("values",), (-np.inf, 1.0), True, False),
    )
}  # fmt: skip


def get_metric(name: str) -> Metric:
    """Return the entry of METRICS called `name`.

    Raises:
        UserError: No metric has this name. The message suggests the closest name and lists all
            names.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name.casefold().replace("-", "_"), METRICS, n=1)
    hint = f"did you mean '{near[0]}'? Known metrics: " if near else "known metrics: "
    raise UserError(f"unknown metric '{name}'; {hint}{', '.join(METRICS)}")


def metric_label(name: str) -> str:
    """Return a metric's name for pages: its title, followed by its key unless the two agree.

    An unknown name, such as that of a removed row in an old run, is returned unchanged.
    """
    if name not in METRICS:
        return name
    title = METRICS[name].title
    return title if title.casefold() == name.replace("_", " ") else f"{title} ({name})"


def with_metrics(task: Task, further: Sequence[str], headline: str | None = None) -> Task:
    """Return a copy of `task` with `further` metrics; `headline`, if given, becomes its score.

    Raises:
        UserError: A name is unknown, or a metric does not fit the task's labels.
    """
    names = list(dict.fromkeys((*task.metrics, *further, *([headline] if headline else []))))
    for name in names[len(task.metrics) :]:
        metric = get_metric(name)
        fitting = [
            other
            for other, row in METRICS.items()
            if set(row.inputs) & set(INPUTS[task.problem_type])
            and not (row.two_classes and task.num_labels != 2)
        ]
        if name not in fitting:
            raise UserError(
                f"metric '{name}' ({metric.title}) does not fit {task.problem_type} with "
                f"{task.num_labels} labels; use one of {', '.join(fitting)}"
            )
    return replace(task, metrics=tuple(names), score=headline or task.score)


def build_metric(names: Sequence[str]) -> "evaluate.Metric":
    """Build one `evaluate.Metric` whose `compute` returns {name: float} for all of `names`.

    The metric uses neither network nor disk. It scores only the rows added in its own process, so
    gather all rows on rank 0 first.

    Raises:
        UserError: A name is unknown, or the metrics have no common kind of input. `compute` raises
            it if there are no rows.
    """
    import datasets
    import evaluate

    rows = {name: get_metric(name) for name in names}
    label, value = datasets.Value("int64"), datasets.Value("float64")
    labels, values = datasets.List(label), datasets.List(value)
    types: dict[Input, tuple[Any, Any]] = {
        "labels": (label, label),
        "values": (value, value),
        "multi_label": (labels, labels),
        "scores": (values, label),
        "multi_label_scores": (values, labels),
    }
    features = [
        datasets.Features(predictions=predictions, references=references)
        for kind, (predictions, references) in types.items()
        if all(kind in row.inputs for row in rows.values())
    ]
    if not rows or not features:
        found = ", ".join(f"{name} ({' or '.join(row.inputs)})" for name, row in rows.items())
        raise UserError(
            f"no kind of prediction fits all requested metrics: {found or 'none'}; "
            "name metrics that share one"
        )

    class TrainyardMetric(evaluate.Metric):
        def _info(self) -> "evaluate.MetricInfo":
            return evaluate.MetricInfo(
                description="; ".join(f"{name}: {row.title}" for name, row in rows.items()),
                citation="",
                inputs_description="",
                features=features,
            )

        def _build_data_dir(self) -> str:
            # The base class creates a cache folder in the home folder even for in-memory metrics.
            return ""

        def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
            """Collect rows; raise UserError for no rows, where the base raises IndexError."""
            check_rows(np.asarray(predictions), np.asarray(references))
            super().add_batch(predictions=predictions, references=references)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            found = np.asarray(predictions), np.asarray(references)
            return {name: row.function(*found) for name, row in rows.items()}

    return TrainyardMetric(keep_in_memory=True)


def decode(problem_type: "ProblemType", logits: NDArray[Any], cuts: Any = 0.0) -> NDArray[Any]:
    """Turn logits of shape [rows, labels] into predictions.

    Returns class indices [rows], values [rows] for regression, or 0/1 [rows, labels] for
    multi-label. A label of a multi-label task applies if its logit is above its cut. A cut of 0 is
    a probability of 0.5.
    """
    if problem_type == "regression":
        return np.squeeze(logits, axis=-1)
    if problem_type == "multi_label_classification":
        return np.asarray(logits > cuts, np.int64)
    classes: NDArray[np.int64] = logits.argmax(axis=-1)
    return classes


def answers(
    metric: str, problem_type: "ProblemType", logits: NDArray[Any], cuts: Any = 0.0
) -> NDArray[Any]:
    """Turn logits of shape [rows, labels] into a metric's input.

    Returns the decisions of `decode`, or probabilities of shape [rows, labels] if the metric takes
    them.

    Raises:
        UserError: The metric is unknown.
    """
    if not get_metric(metric).of_scores:
        return decode(problem_type, logits, cuts)
    from scipy.special import expit, softmax

    wide = logits.astype(np.float64)
    return np.asarray(
        expit(wide) if problem_type == "multi_label_classification" else softmax(wide, axis=1)
    )


def check_rows(predictions: NDArray[Any], references: NDArray[Any]) -> None:
    """Check that predictions and references have rows and fit each other.

    Raises:
        UserError: There are no rows, or the shapes differ. Probabilities of shape [rows, labels]
            fit class indices of shape [rows].
    """
    of_scores = predictions.ndim == 2 and references.ndim == 1
    if (predictions.shape[:1] if of_scores else predictions.shape) != references.shape:
        raise UserError(
            f"predictions have shape {list(predictions.shape)} but references "
            f"{list(references.shape)}; give one prediction for each reference"
        )
    if len(references) == 0:
        raise UserError("there are no rows to score; a metric needs at least one")


def is_constant(values: NDArray[Any]) -> bool:
    """Return True if all rows are equal; there must be at least one row."""
    return bool((values == values[0]).all())
