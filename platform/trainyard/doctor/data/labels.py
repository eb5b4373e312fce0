"""Labels that are probably wrong: those that a model trained on the other rows does not believe.

Confident learning's ranking by out-of-sample probability of the given label, and its estimate of
how many labels are wrong (Northcutt, Jiang and Chuang, JAIR 2021). The model is
logistic regression over words, by stochastic gradients (as good here as L-BFGS and five times as
fast), so it takes seconds. It suspects what is rare as well as what is wrong: people must look.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.doctor.data.features import features
from trainyard.doctor.data.rows import Rows
from trainyard.tasks import Task

FOLDS = 5


def suspicious_labels(task: Task, rows: Rows, *, seed: int, examples: int) -> dict[str, Any]:
    """The least believed labels of a split, worst first, and how many are estimated to be wrong.

    `accuracy` (of a regression, the explained variance) is the cross-validated model's: where it is
    hardly better than chance, the ranking says little, and `trustworthy` is False. Rows without a
    label are left out; where a model cannot be cross-validated, `skipped` says why.
    """
    if rows.labels.ndim == 2:
        return {"skipped": "several labels a row: not looked at"}
    places = np.flatnonzero(rows.known)
    labels = rows.labels[places]
    if not len(labels):
        return {"skipped": "no row has a label"}
    regression = task.problem_type == "regression"
    codes = np.unique(labels, return_inverse=True)[1]  # of the labels that occur, without gaps
    counts = np.bincount(codes) if not regression else np.array([len(labels)])
    if len(counts) == 1 and not regression:
        return {"skipped": "all rows have one label"}
    if counts.min() < FOLDS:
        return {"skipped": f"a label has fewer than {FOLDS} rows"}
    seen = features([rows.words[i] for i in places])
    if not seen.shape[1]:
        return {"skipped": "no word occurs in two rows"}
    if regression:
        doubt, quality = _residuals(seen, labels, seed)
        wrong = int((doubt > 1).sum())
        figures = {"explained_variance": quality, "trustworthy": quality > 0.2}
    else:
        found = out_of_fold(seen, codes, seed)
        doubt = 1 - found[np.arange(len(codes)), codes]
        wrong = int(confident_errors(found, codes).sum())
        accuracy = float((found.argmax(axis=1) == codes).mean())
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
        "ranking": places[order[: max(wrong, examples)]].tolist(),
        "examples": [
            {
                **rows.row(int(places[i])),
                "label": labels[i].item(),
                "doubt": round(float(doubt[i]), 4),
            }
            for i in order[:examples]
        ],
    }


def out_of_fold(seen: Any, labels: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Probabilities of each label by a model that did not see the row; shape [rows, labels].

    `seen` are the rows' features; each label from 0 on must occur.
    """
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    return np.asarray(
        cross_val_predict(
            SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed),
            seen,
            labels,
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
            method="predict_proba",
        )
    )


def confident_errors(found: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows where another label is believed at least as much as that label's own rows believe it.

    The off-diagonal of the confident joint: a label's threshold is the mean probability that its
    own rows give it.
    """
    classes = found.shape[1]
    threshold = np.array(
        [found[labels == k, k].mean() if (labels == k).any() else np.inf for k in range(classes)]
    )
    confident = np.where(found >= threshold, found, -1.0)
    best = confident.argmax(axis=1)
    return np.asarray((confident.max(axis=1) >= 0) & (best != labels))


def _residuals(seen: Any, labels: NDArray[Any], seed: int) -> tuple[NDArray[np.float64], float]:
    """Absolute residuals in units of three robust standard deviations, and R squared."""
    from scipy.stats import median_abs_deviation
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    found = cross_val_predict(
        Ridge(alpha=1.0, solver="sparse_cg"),
        seen,
        labels.astype(np.float64),
        cv=KFold(FOLDS, shuffle=True, random_state=seed),
    )
    residual = np.abs(labels - found)
    scale = 3 * float(median_abs_deviation(labels - found, scale="normal")) or 1.0
    return np.asarray(residual / scale), float(r2_score(labels, found))
