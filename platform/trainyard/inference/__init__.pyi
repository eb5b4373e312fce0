from .batch.config import PredictConfig as PredictConfig
from .batch.run import predict as predict
from .limits import Limits as Limits
from .limits import TooLargeError as TooLargeError
from .parameters import STRICT as STRICT
from .parameters import json_schema as json_schema
from .predictor import Predictor as Predictor
from .registry import PREDICTORS as PREDICTORS
from .tasks.text_classification import (
    COLDEST as COLDEST,
)
from .tasks.text_classification import (
    HOTTEST as HOTTEST,
)
from .tasks.text_classification import (
    stored_temperature as stored_temperature,
)
from .tokenizing import Prepared as Prepared
from .tokenizing import Row as Row
