"""Balance of labels, and drift: is the validation split drawn as the training split was?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.features import features
from trainyard.doctor.data.rows import Rows
from trainyard.tasks import Task

TELLING_ROWS = 20_000
"""Rows of each split that the model which tells splits apart looks at."""


def balance(task: Task, splits: Sequence[Rows]) -> dict[str, Any]:
    """Rows of each label in each split with labels; of a regression mean, deviation and range."""
    found: dict[str, Any] = {}
    for rows in splits:
        if not rows.labeled:
            continue
        if task.problem_type == "regression":
            values = rows.labels[rows.known].astype(np.float64)
            found[rows.name] = {
                "mean": float(values.mean()),
                "sd": float(values.std()),
                "low": float(values.min()),
                "high": float(values.max()),
            }
        elif rows.labels.ndim == 2:
            counts = rows.labels.sum(axis=0)
            found[rows.name] = {n: int(c) for n, c in zip(task.labels, counts, strict=True)}
        else:
            counts = np.bincount(rows.labels[rows.known], minlength=task.num_labels)
            found[rows.name] = {n: int(c) for n, c in zip(task.labels, counts, strict=True)}
    return found


def drift(task: Task, train: Rows, other: Rows, *, seed: int) -> dict[str, Any]:
    """How `other` differs from `train`, each figure with an effect size: large sets show any p.

    `labels`: Cramér's V with chi-squared test, of a regression Kolmogorov-Smirnov; `lengths`: the
    same for words per row; `unseen_words`: share of the words of `other` that never occur in
    `train`; `told_apart`: cross-validated area under the ROC curve of a model that guesses which
    split a row is from: 0.5 means no drift that words show (Lopez-Paz and Oquab 2017).
    """
    # Without its mark a word that occurs in the first text of a pair is known in the second.
    known = {word[1:] for word in {word for row in train.words for word in row}}
    words = [word for row in other.words for word in row]
    unseen = {word for word in set(words) if word[1:] not in known}
    found: dict[str, Any] = {
        "first": train.name,
        "second": other.name,
        "lengths": _ks([len(row) for row in train.words], [len(row) for row in other.words]),
        "unseen_words": sum(word in unseen for word in words) / max(len(words), 1),
        "told_apart": _told_apart(train, other, seed),
    }
    if train.labeled and other.labeled and train.labels.ndim == 1:
        first, second = (rows.labels[rows.known] for rows in (train, other))
        if task.problem_type == "regression":
            found["labels"] = _ks(first, second)
        else:
            found["labels"] = _cramers_v(first, second, task.num_labels)
    return found


def _ks(first: Any, second: Any) -> dict[str, float]:
    from scipy.stats import ks_2samp

    test = ks_2samp(first, second)
    return {"effect": float(test.statistic), "p_value": float(test.pvalue)}


def _cramers_v(first: NDArray[Any], second: NDArray[Any], labels: int) -> dict[str, float]:
    from scipy.stats import chi2_contingency

    counts = np.stack([np.bincount(found, minlength=labels) for found in (first, second)])
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        return {"effect": 0.0, "p_value": 1.0}
    test = chi2_contingency(counts, correction=False)
    return {
        "effect": float(np.sqrt(test.statistic / counts.sum())),
        "p_value": float(test.pvalue),
    }


def _told_apart(first: Rows, second: Rows, seed: int) -> float | None:
    """Area under the curve; None where rows are too few to cross-validate, or share no word."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(seed)
    chosen = [
        [rows.words[i] for i in rng.permutation(len(rows))[:TELLING_ROWS]]
        for rows in (first, second)
    ]
    if min(map(len, chosen)) < 50:
        return None
    seen = features([*chosen[0], *chosen[1]])
    if not seen.shape[1]:
        return None
    origin = np.repeat([0, 1], [len(part) for part in chosen])
    scores = cross_val_predict(
        SGDClassifier(loss="log_loss", class_weight="balanced", random_state=seed),
        seen,
        origin,
        cv=StratifiedKFold(3, shuffle=True, random_state=seed),
        method="decision_function",
    )
    return float(roc_auc_score(origin, scores))
