"""Probably wrong labels: labels to which a model trained on the other rows gives a low probability.

Confident learning ranks rows by the out-of-sample probability of their label, and estimates the number of
wrong labels (Northcutt, Jiang and Chuang, JAIR 2021). The model is a logistic regression over words, which
stochastic gradients train in seconds. It also ranks rare texts high, so the list needs human review.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.features import features
from trainyard.doctor.data.rows import Rows
from trainyard.tasks import Task

FOLDS = 5


def suspicious_labels(task: Task, rows: Rows, *, seed: int, examples: int) -> dict[str, Any]:
    """Rank the labels of a split, the most doubtful first, and estimate the number of wrong ones.

    `accuracy`, or `explained_variance` for a regression, measures the cross-validated model. When it is
    hardly better than chance, `trustworthy` is False. Rows without a label are left out. When no model
    can be cross-validated, `skipped` holds the reason.
    """
    if rows.labels.ndim == 2:
        return {"skipped": "rows have several labels: not supported"}
    indices = np.flatnonzero(rows.has_label)
    labels = rows.labels[indices]
    if not len(labels):
        return {"skipped": "no row has a label"}
    regression = task.problem_type == "regression"
    codes = np.unique(labels, return_inverse=True)[1]  # absent labels leave no gap
    counts = np.bincount(codes) if not regression else np.array([len(labels)])
    if len(counts) == 1 and not regression:
        return {"skipped": "all rows have one label"}
    if counts.min() < FOLDS:
        return {"skipped": f"a label has fewer than {FOLDS} rows"}
    inputs = features([rows.words[i] for i in indices])
    if not inputs.shape[1]:
        return {"skipped": "no word occurs in two rows"}
    if regression:
        doubt, quality = _residuals(inputs, labels, seed)
        wrong = int((doubt > 1).sum())
        figures = {"explained_variance": quality, "trustworthy": quality > 0.2}
    else:
        probabilities = out_of_fold(inputs, codes, seed)
        doubt = 1 - probabilities[np.arange(len(codes)), codes]
        wrong = int(confident_errors(probabilities, codes).sum())
        accuracy = float((probabilities.argmax(axis=1) == codes).mean())
        majority = float(counts.max() / counts.sum())
        figures = {
            "accuracy": accuracy,
            "majority": majority,
            "trustworthy": accuracy > majority + 0.1 * (1 - majority),
        }
    order = np.argsort(-doubt, kind="stable")
    return {
        **figures,
        "rows": len(labels),
        "estimated_wrong": wrong,
        "ranking": indices[order[: max(wrong, examples)]].tolist(),
        "examples": [
            {
                **rows.row(int(indices[i])),
                "label": labels[i].item(),
                "doubt": round(float(doubt[i]), 4),
            }
            for i in order[:examples]
        ],
    }


def out_of_fold(inputs: Any, labels: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Probabilities of each label by a model that was not trained on the row; shape [rows, labels].

    `inputs` are the rows' features. Each label from 0 on must occur.
    """
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    return np.asarray(
        cross_val_predict(
            SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed),
            inputs,
            labels,
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
            method="predict_proba",
        )
    )


def confident_errors(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of rows with another label above its threshold: the off-diagonal of the confident joint.

    The threshold of a label is the mean probability that the rows with this label give it.
    """
    threshold = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels):
        threshold[label] = probabilities[labels == label, label].mean()
    confident = np.where(probabilities >= threshold, probabilities, -1.0)
    best = confident.argmax(axis=1)
    return np.asarray((confident.max(axis=1) >= 0) & (best != labels))


def _residuals(inputs: Any, labels: NDArray[Any], seed: int) -> tuple[NDArray[np.float64], float]:
    """Absolute residuals, in units of three robust standard deviations, and R squared."""
    from scipy.stats import median_abs_deviation
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    predictions = cross_val_predict(
        Ridge(alpha=1.0, solver="sparse_cg"),
        inputs,
        labels.astype(np.float64),
        cv=KFold(FOLDS, shuffle=True, random_state=seed),
    )
    residual = np.abs(labels - predictions)
    scale = 3 * float(median_abs_deviation(labels - predictions, scale="normal")) or 1.0
    return np.asarray(residual / scale), float(r2_score(labels, predictions))
