"""Registry of predictors by task of the Inference API, for batch inference and the server."""

from collections.abc import Iterable
from typing import Any

from trainyard.errors import UserError
from trainyard.inference.predictor import Predictor
from trainyard.inference.tasks.embeddings import FeatureExtraction, SentenceSimilarity
from trainyard.inference.tasks.fill_mask import FillMask
from trainyard.inference.tasks.question_answering import QuestionAnswering
from trainyard.inference.tasks.text_classification import TextClassification
from trainyard.inference.tasks.text_generation import TextGeneration
from trainyard.inference.tasks.text_to_text import Summarization, TextToText, Translation
from trainyard.inference.tasks.token_classification import TokenClassification
from trainyard.inference.tasks.zero_shot_classification import ZeroShotClassification
from trainyard.models import resolve_model

PREDICTORS: dict[str, type[Predictor]] = {
    predictor.task: predictor
    for predictor in (
        TextClassification,
        ZeroShotClassification,
        TokenClassification,
        QuestionAnswering,
        FillMask,
        Summarization,
        Translation,
        TextToText,
        TextGeneration,
        FeatureExtraction,
        SentenceSimilarity,
    )
}
"""Predictor classes by name of the task on the Hub."""


def task_for(architectures: Iterable[Any]) -> str | None:
    """Return the first task that supports one of a config's `architectures`, or None."""
    names = [str(name) for name in architectures]
    return next(
        (
            task
            for task, predictor in PREDICTORS.items()
            if any(name.endswith(predictor.architectures) for name in names)
        ),
        None,
    )


def task_of(model: str, revision: str | None = None) -> str:
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(resolve_model(model), revision=revision)
    except OSError as error:
        raise UserError(
            f"model {model} has no config.json that can be read; give a folder or a Hub id"
        ) from error
    architectures = config.get("architectures") or []
    if (task := task_for(architectures)) is not None:
        return task
    raise UserError(
        f"model {model} is a {' '.join(architectures or ['model without a name'])}, "
        f"which does not determine the task; name one of {', '.join(PREDICTORS)}"
    )
