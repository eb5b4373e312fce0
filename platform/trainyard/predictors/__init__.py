"""The tasks of the Inference API, each a Predictor; shared by batch inference and the server."""

from trainyard.predictors.base import BATCH_TOKENS, Predictor
from trainyard.predictors.rows import Item, Prepared, Row
from trainyard.predictors.text_classification import TextClassification

PREDICTORS: dict[str, type[Predictor]] = {
    predictor.task: predictor for predictor in (TextClassification,)
}
"""By the task's name on the Hub."""

__all__ = ["BATCH_TOKENS", "PREDICTORS", "Item", "Predictor", "Prepared", "Row"]
