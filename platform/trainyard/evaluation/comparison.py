"""Paired comparison of two models, with a correction if the rows were used to choose a model.

The best of several candidates owes part of its score to noise in the rows that selected it. On
these rows, it beats an equally good model too often. The run folder records the selection: run.json
has the splits, the sweep and the trial; metrics.jsonl has the evaluations.

In this module, logits have the shape [rows, labels]. `labels` holds class indices or targets of
shape [rows], or 0/1 of shape [rows, labels].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from trainyard.data import Overlap, Split, files_of, selection_and_test
from trainyard.errors import UserError
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.inputs import EvaluatedModel
from trainyard.evaluation.known_texts import known_texts
from trainyard.metrics import answers, get_metric
from trainyard.stats import (
    CELLS_AT_ONCE,
    distinct_rows,
    group_numbers,
    paired_bootstrap,
    statistic_of,
)
from trainyard.storage import RunFolder, SweepFolder, file_digest
from trainyard.tasks import Task

Kind = Literal["none", "epochs", "trials", "trained", "unknown"]
Role = Literal["selection", "trained", "tested", "other", "unknown"]
"""Use of a split in a run; "tested" is for the run's test file, which did not choose the model."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Use of a split's rows in training or choosing a model."""

    kind: Kind
    sentence: str
    candidates: int | None = 1
    """Number of models from which the rows chose one; None if no correction is possible."""
    test_share: float = 0.0
    """Share of the rows that was set aside from the selection, see `selection_and_test`."""

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "sentence": self.sentence, "candidates": self.candidates}


def selection_of(
    model: EvaluatedModel, config: EvalConfig, task: str, split: Split, cache: Path
) -> Selection:
    """Determine from its run folder if a model was trained on, or selected by, rows of `split`.

    Rows are recognized by the digest of their file or split, otherwise by their texts, see
    `known_texts`. The kind is "unknown" for a model outside a run folder. It is "unknown", too, if
    only some rows were used, or if they cannot be compared with the recorded data. `cache` is the
    folder of tokenized splits.

    Raises:
        UserError: run.json, sweep.json or metrics.jsonl is damaged, or a row cannot be used.
    """
    found = _run_of(model)
    if found is None:
        return _unknown(model)
    run, record = found
    role = _role(record, config, task, split)
    by_texts = role in ("other", "tested", "unknown")
    known = known_texts(run, record, split, cache) if by_texts else None
    if known is None:
        if role == "unknown":
            return _unknown(model)
        recognized, chose = "", frozenset({split.name})
    else:
        if known.role == "partly" or (role == "tested" and known.role != "other"):
            return _partly_known(model, split, known.overlap)
        role, chose = known.role, known.splits
        shared, compared = known.overlap.shared, known.overlap.compared
        recognized = f", recognized by {shared:,} of the {compared:,} texts compared"
    if role == "trained":
        return Selection(
            kind="trained",
            sentence=f"{model.name} was trained on rows of {split.name}{recognized}",
            candidates=None,
        )
    if role in ("other", "tested"):
        return Selection(kind="none", sentence=f"other rows chose {model.name}")
    share = float(record["config"].get("test_share") or 0.0)
    if known is not None or (
        config.validation_file
        and _recorded(record, "validation_file") != _digests(config.validation_file)
    ):
        share = 0.0  # a run sets rows aside by their position in exactly its files
    if record.get("trial", {}).get("kind") == "search":
        trials = len(list(run.path.parent.glob("*/trial.json")))
        return Selection(
            kind="trials",
            sentence=(
                f"{model.name} was chosen among the {trials} trials of sweep "
                f"{record.get('sweep')} by rows of {split.name}{recognized}"
            ),
            candidates=None,
            test_share=share,
        )
    steps = {line["step"] for line in run.metrics() if line.get("split") in chose}
    return Selection(
        kind="epochs",
        sentence=(
            f"{model.name} is the best of {len(steps)} evaluations of its run on {split.name}"
            f"{recognized}"
        ),
        candidates=max(len(steps), 1),
        test_share=share,
    )


def _unknown(model: EvaluatedModel) -> Selection:
    return Selection(
        kind="unknown",
        sentence=(
            f"nothing is known about how {model.name} was chosen; if these rows chose it, it looks "
            "better than it is"
        ),
    )


def _partly_known(model: EvaluatedModel, split: Split, overlap: Overlap) -> Selection:
    texts = (
        f"about {100 * overlap.share:.1f} % of the texts of {split.name} ({overlap.shared:,} of "
        f"{overlap.compared:,} compared)"
        if overlap.is_reliable
        else f"some texts of {split.name} ({overlap.shared:,} of only {overlap.compared:,} that could "
        "be compared)"
    )
    return Selection(
        kind="unknown",
        sentence=(
            f"{texts} are also among those that trained or chose {model.name}, which looks better on "
            "them than on new ones; unless such texts are common, leave them out, or compare on other "
            "rows"
        ),
    )


def _run_of(model: EvaluatedModel) -> tuple[RunFolder, Mapping[str, Any]] | None:
    """Return the run folder of a model and its run.json; None if the model is not in a run folder.

    For the model of a sweep, this is the run from which the model was copied.
    """
    if model.folder is None:
        return None
    parent = model.folder.absolute().parent
    run = RunFolder(parent)
    if (parent / "sweep.json").exists():
        sweep = SweepFolder(parent)
        best = (sweep.read().get("result") or {}).get("best_trial")
        run = RunFolder(sweep.trials / str(best))
        if not (run.path / "run.json").exists():  # the default recipe
            run = RunFolder(sweep.confirmation / f"{best}-seed-0")
    record = run.read()
    return (run, record) if isinstance(record.get("config"), dict) else None


def _role(record: Mapping[str, Any], config: EvalConfig, task: str, split: Split) -> Role:
    trained = record["config"]
    if config.validation_file:
        return _role_of_files(record, config.validation_file)
    own = trained.get("train_file") or trained.get("dataset_name")
    if own or trained.get("task") != task:
        return "other"
    sources = record.get("data_sources")
    if sources is None:  # older runs do not record their sources
        return "trained" if split.name == "train" else "selection"
    if split.name not in sources:
        return "other"
    if split.name == "train":
        return "trained"
    share = float(trained.get("test_share") or 0.0)
    same = sources[split.name] == (split.selection_part(share) if share else split).digest
    # A digest from the Hub and one from a file differ even for the same rows.
    both_files = bool(trained.get("data_dir") and config.data_dir)
    return "selection" if same or not both_files else "other"


def _role_of_files(record: Mapping[str, Any], evaluated: str) -> Role:
    trained = record["config"]
    if trained.get("dataset_name"):  # files of a data set have other digests, even for equal rows
        return "unknown"
    if not trained.get("train_file"):
        return "other"
    digests, missing = set(_digests(evaluated)), False
    roles: tuple[tuple[str, Literal["selection", "trained"]], ...] = (
        ("train_file", "trained"), ("validation_file", "selection"),
    )  # fmt: skip
    for field, role in roles:
        if not trained.get(field):
            continue
        known = _recorded(record, field)
        if known is None:
            missing = True
        elif not digests.isdisjoint(known):
            return role
    tested = set(_recorded(record, "test_file") or ()) if trained.get("test_file") else set()
    if digests <= tested:
        return "tested"
    return "unknown" if missing else "other"


def _recorded(record: Mapping[str, Any], field: str) -> list[str] | None:
    """Return the digests of a run's files; None if they are not recorded and the files are gone."""
    if known := (record.get("data_files") or {}).get(field):
        return str(known).split()
    try:
        return _digests(record["config"][field])
    except (OSError, UserError):
        return None


def _digests(pattern: str) -> list[str]:
    """Return the digest of each file of a path or pattern, see `files_of`."""
    return [file_digest(path) for path in files_of(pattern)]


def clean_rows(
    selections: Sequence[Selection], labels: NDArray[Any]
) -> tuple[NDArray[np.int64] | None, list[Selection]]:
    """Find the rows of a split that were not used to choose the models.

    Returns the indices of these rows (None for all rows), and the selections that apply to them.
    """
    shares = {selection.test_share for selection in selections if selection.test_share}
    if len(shares) != 1:
        return None, list(selections)
    _, rows = selection_and_test(labels, shares.pop())
    return rows, [
        replace(
            selection,
            kind="none",
            candidates=1,
            sentence=f"the {len(rows)} rows that are compared took no part in choosing it",
        )
        if selection.test_share
        else selection
        for selection in selections
    ]


LEVEL = 0.05
WITHHELD = "withheld"
"""Verdict on a model that the rows favor, because they chose it among many models."""
SWAPS = 10_000
_CELLS_IN_ALL = 1 << 22  # cells (swaps times distinct rows) of a test, to bound its time


def compare(
    task: Task,
    logits: NDArray[Any],
    other_logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    names: tuple[str, str],
    seed: int,
    selections: Sequence[Selection] = (),
    groups: NDArray[Any] | None = None,
    other_cuts: Any = 0.0,
) -> dict[str, Any]:
    """Compare two models on the same rows by every metric of the task.

    Accuracy is decided by McNemar's exact test (McNemar 1947), metrics of a regression by the paired
    bootstrap over rows. For other metrics, the bootstrap and the permutation test must agree: models
    often differ on few rows, for which the bootstrap is overconfident. All tests are at the 5 %
    level.

    `selections` describes the use of these rows in choosing the first and the second model. A model
    chosen among its run's evaluations must win by more (Bonferroni). For a model chosen among
    trials, the verdict "better" is withheld. With `groups`, whole groups of rows are drawn and
    swapped, also for accuracy. `task.cuts` are the thresholds of the first model, `other_cuts`
    those of the second model.

    Returns:
        `metrics` (by name: difference of the first minus the second model, interval, test,
        verdict), `rows`, and `verdict`, a sentence on the headline metric.
    """
    references = np.asarray(labels)
    metrics = {}
    for name in task.metrics:
        ours = answers(name, task.problem_type, logits, task.cuts)
        theirs = answers(name, task.problem_type, other_logits, other_cuts)
        metrics[name] = _compare_by(name, ours, theirs, references, seed, selections, groups)
    return {
        "metrics": metrics,
        "rows": len(references),
        "verdict": _words(task, metrics[task.score], names, selections),
    }


def _compare_by(
    name: str,
    ours: NDArray[Any],
    theirs: NDArray[Any],
    references: NDArray[Any],
    seed: int,
    selections: Sequence[Selection],
    groups: NDArray[Any] | None,
) -> dict[str, Any]:
    metric = get_metric(name)
    limits = [selection.candidates for selection in selections] or [1, 1]
    candidates = (limits[0] or 1, limits[1] or 1)
    plain = paired_bootstrap(name, ours, theirs, references, seed=seed, groups=groups)
    found: dict[str, Any] = {
        "difference": plain.difference,
        "interval": [plain.low, plain.high],
        "test": "paired bootstrap",
        "verdict": plain.verdict,
    }
    if candidates != (1, 1):
        corrected = paired_bootstrap(
            name, ours, theirs, references, seed=seed, groups=groups, candidates=candidates
        )
        found |= {
            "corrected_interval": [corrected.low, corrected.high],
            "candidates": list(candidates),
            "verdict": corrected.verdict,
        }
    better = (plain.difference > 0) == metric.higher_is_better
    if metric.counts_rows and groups is None:
        wrong = [wrong_rows(answers, references) for answers in (ours, theirs)]
        test = mcnemar(int((~wrong[0] & wrong[1]).sum()), int((wrong[0] & ~wrong[1]).sum()))
        found |= {"test": "McNemar", **test}
    elif metric.inputs != ("values",):
        p = permutation_test(name, ours, theirs, references, seed=seed, groups=groups)
        found |= {"test": "paired bootstrap and permutation", "p_value": p}
    if groups is not None:
        found["test"] += " of groups"
    correction = candidates[0 if better else 1]
    if "p_value" in found:
        if correction > 1:
            found["corrected_p_value"] = min(1.0, correction * found["p_value"])
        if correction * found["p_value"] >= LEVEL:
            found["verdict"] = "not distinguishable"
    if found["verdict"] == "better" and limits[0] is None:
        found["verdict"] = WITHHELD
    if found["verdict"] == "worse" and limits[1] is None:
        found["verdict"] = WITHHELD
    return found


def permutation_test(
    metric: str,
    predictions: NDArray[Any],
    baseline: NDArray[Any],
    references: NDArray[Any],
    *,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> float:
    """Return the two-sided p-value of a metric's difference between two models.

    Under the null hypothesis, the predictions of a row, or of a whole group of rows, are
    exchangeable. They are swapped at random (approximate randomization, Noreen 1989). The observed
    difference counts as one of the swaps, so the value is never 0. For many distinct rows, fewer
    than 10,000 swaps are drawn, but at least 200.

    Args:
        metric: Name of the metric.
        predictions: Output of `answers` for the first model, shape [rows] or [rows, labels].
        baseline: Output of `answers` for the second model, of the same shape.
        references: Labels or values, shape [rows] or [rows, labels].
        seed: Seed of the swaps.
        groups: Group of each row, shape [rows]; None to swap single rows.

    Raises:
        UserError: The metric is unknown, or all rows belong to one group.
    """
    group = None if groups is None else group_numbers(groups)
    columns = [predictions, baseline, references, *([] if group is None else [group])]
    first, counts = distinct_rows(*columns)
    right = references[first]
    statistic = statistic_of(
        metric,
        np.concatenate([predictions[first], baseline[first]]),
        np.concatenate([right, right]),
    )

    def differences(swapped: NDArray[Any]) -> NDArray[np.float64]:
        kept = counts - swapped
        sides = np.hstack([kept, swapped]), np.hstack([swapped, kept])
        ours, theirs = (statistic(side.astype(np.float64)) for side in sides)
        return np.abs(ours - theirs)

    swaps = int(np.clip(_CELLS_IN_ALL // len(counts), 200, SWAPS))
    rng = np.random.default_rng(seed)
    observed = differences(np.zeros((1, len(counts)), np.int64))
    as_large = 0
    at_once = max(1, CELLS_AT_ONCE // len(counts))
    for start in range(0, swaps, at_once):
        size = min(at_once, swaps - start)
        if group is None:
            drawn = rng.binomial(counts, 0.5, size=(size, len(counts)))
        else:
            coins = rng.integers(2, size=(size, int(group.max()) + 1))
            drawn = coins[:, group[first]] * counts
        as_large += int((differences(drawn) >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + swaps)


def mcnemar(only_first_right: int, only_second_right: int) -> dict[str, Any]:
    discordant = only_first_right + only_second_right
    p = float(binomtest(only_first_right, discordant).pvalue) if discordant else 1.0
    better = "better" if only_first_right > only_second_right else "worse"
    return {
        "only_first_right": only_first_right,
        "only_second_right": only_second_right,
        "p_value": p,
        "verdict": better if p < LEVEL else "not distinguishable",
    }


def wrong_rows(predictions: NDArray[Any], references: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the rows with a wrong class, or with any wrong label; shape [rows]."""
    differs = predictions != references
    return np.asarray(differs.any(axis=1) if differs.ndim == 2 else differs)


def _words(
    task: Task, found: dict[str, Any], names: tuple[str, str], selections: Sequence[Selection]
) -> str:
    low, high = found.get("corrected_interval", found["interval"])
    by = f"{task.score} {found['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}"
    if "candidates" in found:
        by += f", corrected for the best of {' and of '.join(map(str, found['candidates']))}"
    p = found.get("corrected_p_value", found.get("p_value"))
    by += f", {found['test']}" + ("" if p is None else f" p = {p:.3g}") + ")"
    if found["verdict"] == WITHHELD:
        side = 0 if (found["difference"] > 0) == get_metric(task.score).higher_is_better else 1
        return (
            f"no verdict on {names[0]} and {names[1]}: {selections[side].sentence}, so these rows "
            f"favor it; compare on other rows ({by})"
        )
    unknown = "".join(f"; {each.sentence}" for each in selections if each.kind == "unknown")
    if found["verdict"] == "not distinguishable":
        return f"{names[0]} and {names[1]} cannot be distinguished on these rows: {by}"
    return f"{names[0]} is {found['verdict']} than {names[1]}: {by}{unknown}"
