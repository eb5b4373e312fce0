from .config import EngineConfig as EngineConfig
from .config import EvalConfig as EvalConfig
from .engine_choice import choose_engine as choose_engine
from .run import (
    Logits as Logits,
)
from .run import (
    check_finite as check_finite,
)
from .run import evaluate as evaluate
from .run import (
    predict_on_ray as predict_on_ray,
)
from .scoring import figures as figures
from .scoring import not_finite as not_finite
from .scoring import one_answer_words as one_answer_words
from .scoring import one_answers as one_answers
from .scoring import padding_of as padding_of
from .scoring import predict as predict
from .scoring import score as score
