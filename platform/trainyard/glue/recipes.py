"""Training recipes of the suite, one per task with its source, and published scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainyard.errors import UserError
from trainyard.tasks import get_task

COURSE = (
    "Hugging Face course, chapter 3: AdamW, 5e-5, linear to 0, 3 epochs, batches of 8 "
    "(huggingface.co/learn/llm-course/chapter3)"
)
"""Source of the recipe for small tasks."""
LARGE = (
    "the course's rate; one epoch in batches of 32, as transformers' run_glue.py example batches: "
    "a large task gains little from more (Mosaic's suite trains 3 epochs of MNLI and SST-2)"
)
"""Source of the recipe for large tasks."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training fields of one task, and their source.

    Attributes:
        source: Publication or code that the fields were taken from.
        fields: Names and values of `TrainConfig`.
    """

    source: str
    fields: Mapping[str, Any]
    warm_start: str | None = None
    """Task whose model of the same seed can be the start (Phang et al. 2018; Liu et al. 2019)."""
    in_average: bool = True
    """True if the task counts in the average. WNLI does not, as in most papers: its validation set
    is adversarial."""


_SMALL = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3,
    "train_batch_size": 8,
    "per_device_train_batch_size": 8,
}
_LARGE = {
    "learning_rate": 5e-5,
    "num_train_epochs": 1,
    "train_batch_size": 32,
    "per_device_train_batch_size": 16,
}

RECIPES: dict[str, Recipe] = {
    "cola": Recipe(source=COURSE, fields=_SMALL),
    "sst2": Recipe(source=LARGE, fields=_LARGE),
    "mrpc": Recipe(source=COURSE, fields=_SMALL, warm_start="mnli"),
    "stsb": Recipe(source=COURSE, fields=_SMALL, warm_start="mnli"),
    "qqp": Recipe(source=LARGE, fields=_LARGE),
    "mnli": Recipe(source=LARGE, fields=_LARGE),
    "qnli": Recipe(source=LARGE, fields=_LARGE),
    "rte": Recipe(source=COURSE, fields=_SMALL, warm_start="mnli"),
    "wnli": Recipe(source=COURSE, fields=_SMALL, in_average=False),
}
"""Recipe of each task, in the order of GLUE and of the table."""


def get_recipe(task: str) -> Recipe:
    """Return the recipe of a task.

    Raises:
        UserError: The task is unknown, or has no recipe.
    """
    get_task(task)
    if task not in RECIPES:
        raise UserError(
            f"task '{task}' is not one of the suite's ({', '.join(RECIPES)}); train it by "
            "`trainyard train`"
        )
    return RECIPES[task]


@dataclass(frozen=True)
class Reference:
    """Published validation scores of a model, and their source."""

    model: str
    source: str
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Task -> scores in percent, as printed at the source. Two scores are in the order of the
    task's metrics here, or for MNLI of its splits: matched, mismatched."""


_MINILM = "microsoft/unilm minilm/README.md"
_DISTILBERT = "transformers research_projects/distillation README"

REFERENCES = (
    Reference(
        "MiniLM-L6-H384-uncased",
        _MINILM + " (not the sentence encoder of the same shape)",
        {"cola": (47.5,), "sst2": (91.5,), "mrpc": (88.9,), "qqp": (90.6,), "mnli": (83.3,),
         "qnli": (90.5,), "rte": (68.8,)},
    ),
    Reference(
        "MiniLM-L12-H384-uncased",
        _MINILM,
        {"cola": (58.5,), "sst2": (93.0,), "mrpc": (89.5,), "qqp": (91.3,), "mnli": (85.7,),
         "qnli": (91.5,), "rte": (73.3,)},
    ),
    Reference(
        "distilbert-base-uncased",
        _DISTILBERT,
        {"cola": (51.3,), "sst2": (91.3,), "mrpc": (87.5,), "stsb": (86.9,), "qqp": (88.5,),
         "mnli": (82.1,), "qnli": (89.2,), "rte": (59.9,), "wnli": (56.3,)},
    ),
    Reference(
        "bert-base-cased",
        "transformers examples/pytorch/text-classification/README.md",
        {"cola": (56.53,), "sst2": (92.32,), "mrpc": (84.07, 88.85), "stsb": (88.64, 88.48),
         "qqp": (90.71, 87.49), "mnli": (83.91, 84.10), "qnli": (90.66,), "rte": (65.70,),
         "wnli": (56.34,)},
    ),
    Reference(
        "bert-base-uncased",
        _DISTILBERT,
        {"cola": (56.3,), "sst2": (92.7,), "mrpc": (88.6,), "stsb": (89.0,), "qqp": (89.6,),
         "mnli": (84.7,), "qnli": (91.8,), "rte": (69.3,), "wnli": (53.5,)},
    ),
    Reference(
        "roberta-base",
        "microsoft/LoRA examples/NLU README (Liu et al. 2019)",
        {"cola": (63.6,), "sst2": (94.8,), "mrpc": (90.2,), "stsb": (91.2,), "qqp": (91.9,),
         "mnli": (87.6,), "qnli": (92.8,), "rte": (78.7,)},
    ),
)  # fmt: skip
"""Published scores in the table, smallest model first."""
