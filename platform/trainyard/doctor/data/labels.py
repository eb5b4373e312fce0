"""Checks of labels and words: balance, drift between splits, and probably wrong labels.

Confident learning ranks rows by the out-of-sample probability of their label, and estimates the number of
wrong labels (Northcutt, Jiang and Chuang, JAIR 2021). The model is a logistic regression over words, which
stochastic gradient descent trains in seconds. Rare texts rank high too, so the list needs human
review.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.rows import Rows
from trainyard.tasks import Task

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FOLDS = 5
CLASSIFIER_ROWS = 20_000
"""Maximum rows of each split for the classifier that tells splits apart."""
DIMENSIONS = 1 << 20
"""Number of columns of the hashed word features."""


def features(words: Sequence[Sequence[str]]) -> "csr_matrix":
    """Compute TF-IDF features of words and bigrams; sparse, shape [rows, features].

    Rows have unit norm. For a pair of texts, further features mark words of both texts, and of one
    text only. Features that occur in a single row are dropped, because they cannot generalize. So
    there may be no features at all.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    hashed = HashingVectorizer(
        analyzer=_grams, n_features=DIMENSIONS, alternate_sign=False, norm=None
    ).transform(words)
    rows_with = np.bincount(hashed.indices, minlength=DIMENSIONS)
    shared = hashed[:, rows_with > 1]
    return TfidfTransformer(sublinear_tf=True).fit_transform(shared) if shared.shape[1] else shared


def _grams(words: Sequence[str]) -> list[str]:
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    first = {word[1:] for word in words if word[0] == "0"}
    second = {word[1:] for word in words if word[0] == "1"}
    if not second:
        return [*words, *pairs]
    membership = [
        *(f"= {word}" for word in first & second),
        *(f"< {word}" for word in first - second),
        *(f"> {word}" for word in second - first),
    ]
    return [*words, *pairs, *membership]


def balance(task: Task, splits: Sequence[Rows]) -> dict[str, Any]:
    """Count the rows of each label in each labeled split.

    For a regression, return mean, standard deviation, minimum and maximum of the targets of each
    split.
    """
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
            continue
        if rows.labels.ndim == 2:
            counts = rows.labels.sum(axis=0)
        else:
            counts = np.bincount(rows.labels[rows.has_label], minlength=task.num_labels)
        balance_of[rows.name] = {n: int(c) for n, c in zip(task.labels, counts, strict=True)}
    return balance_of


def drift(task: Task, train: Rows, other: Rows, *, seed: int) -> dict[str, Any]:
    """Measure differences between `other` and `train` as effect sizes.

    Large splits make any p-value small.

    - `labels`: Cramér's V with a chi-squared test; for a regression, Kolmogorov-Smirnov.
    - `lengths`: Kolmogorov-Smirnov of the words per row.
    - `unseen_words`: Share of the words in `other` that do not occur in `train`.
    - `told_apart`: Cross-validated area under the ROC curve of a classifier that predicts the split of
      a row. 0.5 means no drift of the words (Lopez-Paz and Oquab 2017).
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


def _ks(
    first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any]
) -> dict[str, float]:
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
    effect = float(np.sqrt(test.statistic / counts.sum()))
    return {"effect": effect, "p_value": float(test.pvalue)}


def _separability(first: Rows, second: Rows, seed: int) -> float | None:
    """Return the area under the ROC curve of a classifier that tells two splits apart.

    Returns None if a split has fewer than 50 rows, or if no word occurs in two rows.
    """
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


def suspicious_labels(task: Task, rows: Rows, *, seed: int, examples: int) -> dict[str, Any]:
    """Rank the labels of a split, the most doubtful first, and estimate the number of wrong labels.

    `accuracy`, or `explained_variance` for a regression, measures the cross-validated model. If the
    model is hardly better than chance, `trustworthy` is False. Rows without a label are left out.
    If no model can be cross-validated, the result only holds `skipped`, the reason.
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


def out_of_fold(inputs: "csr_matrix", labels: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Predict label probabilities with models not trained on the row; shape [rows, labels].

    `inputs` holds the features of the rows. Labels count from 0, and each must occur in at least
    FOLDS rows.
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
    """Return a mask of rows whose label is confidently wrong, shape [rows].

    `probabilities` has the shape [rows, labels], and `labels` [rows]. The rows are the off-diagonal
    of the confident joint (Northcutt et al. 2021): the probability of another label is the highest
    above its threshold. The threshold of a label is its mean probability in the rows with this
    label.
    """
    threshold = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels):
        threshold[label] = probabilities[labels == label, label].mean()
    confident = np.where(probabilities >= threshold, probabilities, -1.0)
    best = confident.argmax(axis=1)
    return np.asarray((confident.max(axis=1) >= 0) & (best != labels))


def _residuals(
    inputs: "csr_matrix", labels: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.float64], float]:
    """Return cross-validated absolute residuals, shape [rows], and R squared.

    The unit of the residuals is three robust standard deviations, by the median absolute deviation.
    """
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
