"""Balance of labels, and drift between the training split and the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.features import features
from trainyard.doctor.data.rows import Rows
from trainyard.tasks import Task

CLASSIFIER_ROWS = 20_000
"""Maximum rows of each split for the classifier that tells splits apart."""


def balance(task: Task, splits: Sequence[Rows]) -> dict[str, Any]:
    """Count the rows of each label in each labeled split; describe the targets of a regression."""
    balance_of: dict[str, Any] = {}
    for rows in splits:
        if not rows.labeled:
            continue
        if task.problem_type == "regression":
            values = rows.labels[rows.has_label].astype(np.float64)
            balance_of[rows.name] = {
                "mean": float(values.mean()),
                "sd": float(values.std()),
                "low": float(values.min()),
                "high": float(values.max()),
            }
        elif rows.labels.ndim == 2:
            counts = rows.labels.sum(axis=0)
            balance_of[rows.name] = {n: int(c) for n, c in zip(task.labels, counts, strict=True)}
        else:
            counts = np.bincount(rows.labels[rows.has_label], minlength=task.num_labels)
            balance_of[rows.name] = {n: int(c) for n, c in zip(task.labels, counts, strict=True)}
    return balance_of


def drift(task: Task, train: Rows, other: Rows, *, seed: int) -> dict[str, Any]:
    """Measure differences between `other` and `train` as effect sizes: large sets make any p small.

    - `labels`: Cramér's V with a chi-squared test; for a regression, Kolmogorov-Smirnov.
    - `lengths`: Kolmogorov-Smirnov of the words per row.
    - `unseen_words`: Share of the words of `other` that never occur in `train`.
    - `told_apart`: Cross-validated area under the ROC curve of a classifier of a row's split. 0.5 means
      no drift of the words (Lopez-Paz and Oquab 2017).
    """
    # Without the index of its text: a word of a first text also counts as seen in a second one.
    train_words = {word[1:] for word in {word for row in train.words for word in row}}
    words = [word for row in other.words for word in row]
    unseen = {word for word in set(words) if word[1:] not in train_words}
    figures: dict[str, Any] = {
        "first": train.name,
        "second": other.name,
        "lengths": _ks([len(row) for row in train.words], [len(row) for row in other.words]),
        "unseen_words": sum(word in unseen for word in words) / max(len(words), 1),
        "told_apart": _separability(train, other, seed),
    }
    if train.labeled and other.labeled and train.labels.ndim == 1:
        first, second = (rows.labels[rows.has_label] for rows in (train, other))
        if task.problem_type == "regression":
            figures["labels"] = _ks(first, second)
        else:
            figures["labels"] = _cramers_v(first, second, task.num_labels)
    return figures


def _ks(first: Any, second: Any) -> dict[str, float]:
    from scipy.stats import ks_2samp

    test = ks_2samp(first, second)
    return {"effect": float(test.statistic), "p_value": float(test.pvalue)}


def _cramers_v(first: NDArray[Any], second: NDArray[Any], labels: int) -> dict[str, float]:
    from scipy.stats import chi2_contingency

    counts = np.stack([np.bincount(values, minlength=labels) for values in (first, second)])
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        return {"effect": 0.0, "p_value": 1.0}
    test = chi2_contingency(counts, correction=False)
    return {
        "effect": float(np.sqrt(test.statistic / counts.sum())),
        "p_value": float(test.pvalue),
    }


def _separability(first: Rows, second: Rows, seed: int) -> float | None:
    """Area under the ROC curve; None when rows are too few to cross-validate or share no word."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(seed)
    chosen = [
        [rows.words[i] for i in rng.permutation(len(rows))[:CLASSIFIER_ROWS]]
        for rows in (first, second)
    ]
    if min(map(len, chosen)) < 50:
        return None
    inputs = features([*chosen[0], *chosen[1]])
    if not inputs.shape[1]:
        return None
    origin = np.repeat([0, 1], [len(part) for part in chosen])
    scores = cross_val_predict(
        SGDClassifier(loss="log_loss", class_weight="balanced", random_state=seed),
        inputs,
        origin,
        cv=StratifiedKFold(3, shuffle=True, random_state=seed),
        method="decision_function",
    )
    return float(roc_auc_score(origin, scores))
