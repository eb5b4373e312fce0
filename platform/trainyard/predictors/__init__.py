"""The tasks of the Inference API, each a Predictor; shared by batch inference and the server."""

from trainyard.predictors.base import BATCH_TOKENS, Predictor
from trainyard.predictors.embeddings import FeatureExtraction, SentenceSimilarity
from trainyard.predictors.fill_mask import FillMask
from trainyard.predictors.question_answering import QuestionAnswering
from trainyard.predictors.rows import Item, Prepared, Row
from trainyard.predictors.text_classification import TextClassification
from trainyard.predictors.token_classification import TokenClassification
from trainyard.predictors.zero_shot_classification import ZeroShotClassification

PREDICTORS: dict[str, type[Predictor]] = {
    predictor.task: predictor
    for predictor in (
        TextClassification,
        ZeroShotClassification,
        TokenClassification,
        QuestionAnswering,
        FillMask,
        FeatureExtraction,
        SentenceSimilarity,
    )
}
"""By the task's name on the Hub."""

__all__ = ["BATCH_TOKENS", "PREDICTORS", "Item", "Predictor", "Prepared", "Row"]
