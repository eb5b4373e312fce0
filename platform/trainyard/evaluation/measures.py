"""Details of a score: confusion matrix, figures per class, worst errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.evaluation.calibration import decisions, probabilities
from trainyard.metrics import decode
from trainyard.stats import bootstrap_interval, proportion_interval
from trainyard.tasks import Task


def confusion(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> list[list[int]] | None:
    """Count rows by [label][prediction]; None unless each row has exactly one class."""
    from sklearn.metrics import confusion_matrix

    if task.problem_type != "single_label_classification":
        return None
    predictions = decode(task.problem_type, logits)
    matrix = confusion_matrix(labels, predictions, labels=range(task.num_labels))
    return [[int(count) for count in row] for row in matrix]


def per_class(
    task: Task, logits: NDArray[Any], labels: NDArray[Any], *, seed: int
) -> list[dict[str, Any]]:
    """Precision, recall (Wilson intervals) and F1 (bootstrap interval) of each class or label."""
    if task.problem_type == "regression":
        return []
    predictions, references = decode(task.problem_type, logits), np.asarray(labels)
    found = []
    for index, name in enumerate(task.labels):
        if references.ndim == 2:
            predicted, right = predictions[:, index] > 0, references[:, index] > 0
        else:
            predicted, right = predictions == index, references == index
        hits = int((predicted & right).sum())
        said, support = int(predicted.sum()), int(right.sum())
        of_class = predicted.astype(np.int64), right.astype(np.int64)
        found.append(
            {
                "label": name,
                "rows": support,
                "predicted": said,
                "precision": hits / said if said else 0.0,
                "precision_interval": list(proportion_interval(hits, said)),
                "recall": hits / support if support else 0.0,
                "recall_interval": list(proportion_interval(hits, support)),
                "f1": 2 * hits / (said + support) if said + support else 0.0,
                "f1_interval": list(bootstrap_interval("f1", *of_class, seed=seed)),
            }
        )
    return found


def row_errors(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Error of each row, shape [rows]: absolute error of a regression, else 0 or 1."""
    predictions, references = decode(task.problem_type, logits), np.asarray(labels)
    if task.problem_type == "regression":
        return np.asarray(np.abs(predictions.astype(np.float64) - references), np.float64)
    differs = predictions != references
    wrong = differs.any(axis=1) if differs.ndim == 2 else differs
    return np.asarray(wrong, np.float64)


def row_losses(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Loss of each row, shape [rows]: absolute error of a regression, else log loss."""
    if task.problem_type == "regression":
        return row_errors(task, logits, labels)
    scores, classes = decisions(task.problem_type, logits, labels)
    of_label = probabilities(scores)[np.arange(len(classes)), classes]
    losses = -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))
    return np.asarray(losses.reshape(len(labels), -1).sum(axis=1))


def worst_rows(
    task: Task, logits: NDArray[Any], labels: NDArray[Any], limit: int
) -> list[dict[str, Any]]:
    """Select the wrong answers of highest confidence, worst first, without texts."""
    losses = row_losses(task, logits, labels)
    losses[row_errors(task, logits, labels) == 0] = -1.0
    order = np.argsort(-losses, kind="stable")[:limit]
    predictions = decode(task.problem_type, logits)
    return [
        {
            "row": int(row),
            "label": label_words(task, labels[row]),
            "prediction": label_words(task, predictions[row]),
            "loss": float(losses[row]),
        }
        for row in order
        if losses[row] >= 0
    ]


def label_words(task: Task, label: Any) -> Any:
    """Readable form of a label: a name, a list of names, or a number."""
    if task.problem_type == "regression":
        return round(float(label), 3)
    if task.problem_type == "multi_label_classification":
        return [name for name, on in zip(task.labels, label, strict=True) if on]
    return _name(task.labels, int(label))


def _name(labels: Sequence[str], index: int) -> str | None:
    return labels[index] if index >= 0 else None
