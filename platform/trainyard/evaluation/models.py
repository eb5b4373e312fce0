"""Description of a fine-tuned model, and the mapping of its outputs to a task's labels."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.evaluation.config import DEFAULT_LENGTH
from trainyard.models import load_config, resolve_model
from trainyard.storage import RunFolder
from trainyard.tasks import Task

_GENERIC = re.compile(r"LABEL_([0-9]+)")


@dataclass(frozen=True)
class Judged:
    """Description of a fine-tuned model by its config, without its weights."""

    name: str
    path: str
    task: str | None
    labels: tuple[str, ...]
    problem_type: str | None
    max_length: int | None

    @property
    def folder(self) -> Path | None:
        """Local folder; None for a model on the Hub."""
        return Path(self.path) if Path(self.path).is_dir() else None


def describe(name: str) -> Judged:
    """Read a model's config, and its run's if it is in a run folder, but not its weights."""
    settings = load_config(name)
    path = resolve_model(name)
    labels = tuple(settings.id2label[i] for i in sorted(settings.id2label))
    regression = settings.problem_type == "regression" or len(labels) == 1
    return Judged(
        name=name,
        path=path,
        task=getattr(settings, "finetuning_task", None),
        labels=()
        if regression and settings.problem_type != "multi_label_classification"
        else labels,
        problem_type=settings.problem_type or ("regression" if regression else None),
        max_length=_trained_length(Path(path)),
    )


def _trained_length(folder: Path) -> int | None:
    """Read `--max-length` of the model's run; None for a model on the Hub."""
    if not folder.is_dir():
        return None
    run = RunFolder(folder.parent)
    try:
        trained = run.read().get("config")
    except UserError as error:
        raise UserError(
            f"{run.path / 'run.json'} is damaged and does not say which --max-length the model was "
            "trained with; move it away, and give --max-length"
        ) from error
    length: int | None = trained.get("max_length") if isinstance(trained, dict) else None
    return length


def max_length(model: Judged, asked: int | None) -> int:
    """Return `--max-length`, else the value of the model's training, else 128."""
    return asked or model.max_length or DEFAULT_LENGTH


def match_labels(
    labels: Sequence[str], model: Judged, given: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """Match each of the rows' `labels` with one of the model's; None if a label has no match.

    `given` (--label-mapping) decides, for a model that has these labels. Else all names are equal, or
    equal but for case and punctuation, or numbers on one side and LABEL_0, LABEL_1, … on the other. No
    two labels may become equal.
    """
    if given and set(given.values()) <= set(model.labels):
        found = {label: given.get(label, label) for label in labels}
        return found if set(found.values()) <= set(model.labels) else None
    keys: tuple[Callable[[str], str], ...] = (str, _folded, _number)
    for key in keys:
        names = {key(label): label for label in model.labels}
        keyed = {label: key(label) for label in labels}
        distinct = len(names) == len(model.labels) and len(set(keyed.values())) == len(keyed)
        if distinct and set(keyed.values()) <= names.keys():
            return {label: names[key] for label, key in keyed.items()}
    return None


def match_task(model: Judged, task: Task, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Match the labels of a task with the model's, see `match_labels`.

    A model of LABEL_0, LABEL_1, … has the labels in the task's order.

    Raises:
        UserError: when the model's labels do not match the task's.
    """
    if task.problem_type == "regression" or not task.labels:
        if model.labels:
            raise UserError(
                f"model {model.name} is a classifier ({', '.join(model.labels[:5])}), but task "
                f"'{task.name}' asks for a number; give a model that was fine-tuned on it"
            )
        return {}
    if len(model.labels) == len(task.labels):
        if not given and all(_GENERIC.fullmatch(label) for label in model.labels):
            return dict(zip(task.labels, model.labels, strict=True))
        found = match_labels(task.labels, model, given)
        if found and len(set(found.values())) == len(found):
            return found
    raise UserError(
        f"model {model.name} answers {', '.join(model.labels[:5]) or 'a number'}, but task "
        f"'{task.name}' has the labels {', '.join(task.labels[:5])}; give a model that was fine-tuned "
        "on it, or --task for another task, or --label-mapping with the model's label for each of these"
    )


def column_order(model: Judged, task: Task, given: Mapping[str, str] | None = None) -> list[int]:
    """Find the index of the model's output for each of the task's labels, see `match_task`.

    Raises:
        UserError: when the model's labels do not match the task's.
    """
    found = match_task(model, task, given)
    return [model.labels.index(label) for label in found.values()] or [0]


def mapping_note(found: Mapping[str, str]) -> list[str]:
    """Say which label stands for which one of the model's; nothing where all names are equal."""
    if all(label == name for label, name in found.items()):
        return []
    pairs = ", ".join(f"{label} is {name}" for label, name in found.items())
    return [f"note: the labels of the rows are matched with the model's: {pairs}"]


def in_task_order(logits: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """Reorder outputs, shape [rows, labels]: one column per label of the task."""
    return np.ascontiguousarray(logits[:, order])


def _number(label: str) -> str:
    found = _GENERIC.fullmatch(label)
    return found[1] if found else label


def _folded(label: str) -> str:
    """Keep letters, marks, digits and symbols ("+1" is not "-1"), with single spaces between words."""
    text = unicodedata.normalize("NFKC", label).casefold()
    kept = (c if unicodedata.category(c)[0] in "LMNS" else " " for c in text)
    return " ".join("".join(kept).split())
