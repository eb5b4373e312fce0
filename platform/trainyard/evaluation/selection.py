"""Relation between a model and its evaluation rows: none, selection or training.

The best of several candidates owes part of its score to noise in the rows that compared them. On these
rows it beats an equally good model too often. The run folder records the comparison: run.json has
the splits, the sweep and the trial; metrics.jsonl has the evaluations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainyard.data import Split, selection_and_test
from trainyard.errors import UserError
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.models import Judged
from trainyard.storage import RunFolder, SweepFolder, file_digest

Kind = Literal["none", "epochs", "trials", "trained", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Part of a split's rows in training or choosing a model."""

    kind: Kind
    sentence: str
    candidates: int | None = 1
    """Number of models that these rows compared; None when no correction is possible."""
    test_share: float = 0.0
    """Share of these rows that took no part in the selection (`selection_and_test`)."""

    def as_json(self) -> dict[str, Any]:
        """Build the entry in evaluation.json."""
        return {"kind": self.kind, "sentence": self.sentence, "candidates": self.candidates}


def selection_of(model: Judged, config: EvalConfig, task: str, split: Split) -> Selection:
    """Find out from a model's run folder whether a split chose it."""
    found = _run_of(model)
    if found is None:
        return _unknown(model)
    run, record = found
    role = _role(record, config, task, split)
    if role == "unknown":
        return _unknown(model)
    if role == "trained":
        return Selection(
            kind="trained",
            sentence=f"{model.name} was trained on rows of {split.name}",
            candidates=None,
        )
    if role == "other":
        return Selection(kind="none", sentence=f"other rows chose {model.name}")
    share = float(record["config"].get("test_share") or 0.0)
    if record.get("trial", {}).get("kind") == "search":
        trials = len(list(run.path.parent.glob("*/trial.json")))
        return Selection(
            kind="trials",
            sentence=(
                f"{model.name} was chosen among the {trials} trials of sweep "
                f"{record.get('sweep')} by rows of {split.name}"
            ),
            candidates=None,
            test_share=share,
        )
    steps = {line["step"] for line in run.metrics() if line.get("split") == split.name}
    return Selection(
        kind="epochs",
        sentence=f"{model.name} is the best of {len(steps)} evaluations of its run on {split.name}",
        candidates=max(len(steps), 1),
        test_share=share,
    )


def _unknown(model: Judged) -> Selection:
    return Selection(
        kind="unknown",
        sentence=(
            f"nothing is known about how {model.name} was chosen; if these rows chose it, it looks "
            "better than it is"
        ),
    )


def _run_of(model: Judged) -> tuple[RunFolder, Mapping[str, Any]] | None:
    """Find the run of a model's folder; for a sweep's model, the run that it was copied from."""
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


def _role(
    record: Mapping[str, Any], config: EvalConfig, task: str, split: Split
) -> Literal["selection", "trained", "other", "unknown"]:
    """Part that a split's rows had in a run."""
    trained = record["config"]
    if config.validation_file:
        return _role_of_file(record, Path(config.validation_file))
    if trained.get("train_file") or trained.get("task") != task:
        return "other"
    sources = record.get("data_sources")
    if sources is None:  # runs of earlier versions have no record of them
        return "trained" if split.name == "train" else "selection"
    if split.name not in sources:
        return "other"
    names = list(sources)  # the training split is the first one
    if split.name == names[0]:
        return "trained"
    share = float(trained.get("test_share") or 0.0)
    same = sources[split.name] == (split.selection_part(share) if share else split).digest
    # A digest from the Hub and one from a file differ even for the same rows.
    both_files = bool(trained.get("data_dir") and config.data_dir)
    return "selection" if same or not both_files else "other"


def _role_of_file(
    record: Mapping[str, Any], path: Path
) -> Literal["selection", "trained", "other", "unknown"]:
    trained = record["config"]
    if not trained.get("train_file"):
        return "other"
    digest, missing = file_digest(path), False
    roles: tuple[tuple[str, Literal["selection", "trained", "other"]], ...] = (
        ("train_file", "trained"), ("validation_file", "selection"), ("test_file", "other"),
    )  # fmt: skip
    for field, role in roles:
        if not trained.get(field):
            continue
        known = (record.get("data_files") or {}).get(field)
        if known is None:
            try:
                known = file_digest(Path(trained[field]))
            except (OSError, UserError):
                missing = True
        if known == digest:
            return role
    return "unknown" if missing else "other"


def clean_rows(
    selections: Sequence[Selection], labels: NDArray[Any]
) -> tuple[NDArray[np.int64] | None, list[Selection]]:
    """Find the rows of a split that took no part in choosing the models.

    Returns the rows (None for all) and the selections on these rows.
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
