"""Description of a fine-tuned model, and the mapping of its outputs to a task's labels."""

import re
import unicodedata
from collections.abc import Callable
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

_GENERIC = re.compile(r"LABEL_\d+")


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


def column_order(model: Judged, task: Task) -> list[int]:
    """Find the index of the model's output for each of the task's labels.

    Names are matched exactly, else without case and punctuation if they stay distinct. So a model
    with another order of labels is scored correctly. `LABEL_0`, `LABEL_1` are taken in the task's
    order.

    Raises:
        UserError: when the model's labels do not match the task's.
    """
    expected = list(task.labels)
    if task.problem_type == "regression" or not expected:
        if model.labels:
            raise UserError(
                f"model {model.name} is a classifier ({', '.join(model.labels[:5])}), but task "
                f"'{task.name}' asks for a number; give a model that was fine-tuned on it"
            )
        return [0]
    if len(model.labels) == len(expected):
        if all(_GENERIC.fullmatch(label) for label in model.labels):
            return list(range(len(expected)))
        keys: tuple[Callable[[str], str], ...] = (str, _folded)
        for key in keys:
            places = {key(label): i for i, label in enumerate(model.labels)}
            if len(places) == len(expected) and set(places) == set(map(key, expected)):
                return [places[key(label)] for label in expected]
    raise UserError(
        f"model {model.name} answers {', '.join(model.labels[:5]) or 'a number'}, but task "
        f"'{task.name}' has the labels {', '.join(expected[:5])}; give a model that was fine-tuned "
        "on it, or --task for another task"
    )


def in_task_order(logits: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """Reorder outputs, shape [rows, labels]: one column per label of the task."""
    return np.ascontiguousarray(logits[:, order])


def _folded(label: str) -> str:
    """Keep letters, marks, digits and symbols ("+1" is not "-1"), with single spaces between words."""
    text = unicodedata.normalize("NFKC", label).casefold()
    kept = (c if unicodedata.category(c)[0] in "LMNS" else " " for c in text)
    return " ".join("".join(kept).split())
