"""Text classification: single texts and pairs, one label or many, and regression."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.inference.parameters import Strict, Truncation, fields_of, text_of
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Item, Prepared
from trainyard.metrics import stored_cuts
from trainyard.models import resolve_model, trained_length

COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature: beyond the bounds, scores would be almost 0 and 1, or almost equal."""


@dataclass(frozen=True, kw_only=True)
class TextClassificationParameters(Strict):
    """Parameters of a request."""

    top_k: Annotated[int, Ge(1)] | None = None
    """Number of labels in the answer, most probable first. Default: all."""
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    """Function from the model's outputs to scores. Default: by the model's problem type."""
    truncation: Truncation = False
    """Truncate texts that are too long for the model instead of refusing them. The default is true for a
    model that stores the length it was trained with, as runs of `trainyard train` do."""


class SequenceClassifier(Predictor):
    """Base of predictors with one output vector per sequence.

    The limit on a text is the length that the model was trained with, if its config stores one.
    """

    trained_length: int | None = None
    """Value of --max-length in training; None if the model stores none."""
    auto_model = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)

    def check_model(self) -> None:
        """Set the limit on a text, and the padding token, by which decoders find the end of a row.

        Raises:
            UserError: The tokenizer has no padding token, or the stored length is invalid.
        """
        self.trained_length = trained_length(self.model.config)
        limits = [n for n in (self.max_tokens, self.trained_length) if n is not None]
        self.max_tokens = min(limits, default=None)
        if self.tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer has no padding token, which {self.task} needs to batch texts; set "
                "pad_token in its tokenizer_config.json"
            )
        if getattr(self.model.config, "pad_token_id", None) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.config.use_cache = False  # a classifier generates no tokens

    def results(self, rows: Any, outputs: Any) -> list[Any]:
        """Extract the logits of each row, [labels]."""
        del rows
        return list(outputs.logits.float().cpu().numpy())


class TextClassification(SequenceClassifier):
    """Labels with scores, best first.

    `inputs` is a text, `{"text": …, "text_pair": …}`, or a list of these. The answer is a list of
    lists, one per input, even for a single input, as `InferenceClient` expects. Scores equal those
    of transformers' pipeline, except for models with a calibration file. If the model
    stores thresholds (`--label-thresholds fitted`), each label also has `applies`.
    """

    task = "text-classification"
    has_label_columns = True
    parameters = TextClassificationParameters
    example: Mapping[str, Any] = {"inputs": "I like it.", "parameters": {}}
    temperature = 1.0
    cuts: NDArray[np.float64] | None = None
    """Logits above which labels apply, [labels]; None if the model stores no thresholds."""

    def check_model(self) -> None:
        super().check_model()
        self.cuts = stored_cuts(self.model.config)

    def read_more(self, name: str, revision: str | None) -> None:
        del revision  # models in the Hub's cache are not calibrated
        self.temperature = stored_temperature(Path(resolve_model(name)))

    def preprocess(self, inputs: Any, parameters: Mapping[str, Any] | None = None) -> Prepared:
        if self.trained_length is not None and isinstance(parameters, Mapping | None):
            parameters = {"truncation": True, **(parameters or {})}
        return super().preprocess(inputs, parameters)

    def encode(self, inputs: list[Any], parameters: TextClassificationParameters) -> list[Item]:
        texts, pairs = zip(*map(_pair, inputs), strict=True)
        if any((pair is None) != (pairs[0] is None) for pair in pairs):
            raise UserError("inputs mixes single texts with pairs; send them in two requests")
        tokens = self.tokenize(
            list(texts), None if pairs[0] is None else list(pairs), truncation=parameters.truncation
        )
        rows = self.rows_of(tokens)
        return [Item([row], cut) for row, cut in zip(rows, tokens.truncated, strict=True)]

    def decode(
        self, item: Item, results: list[Any], parameters: TextClassificationParameters
    ) -> list[dict[str, Any]]:
        """Return labels sorted by score; function `none` gives raw logits, without temperature."""
        del item
        function = parameters.function_to_apply or self._usual_function()
        logits = results[0] if function == "none" else results[0] / self.temperature
        scores = _FUNCTIONS[function](logits)
        order = np.argsort(-scores, kind="stable")[: parameters.top_k]
        names = self.labels
        found: list[dict[str, Any]] = [
            {"label": names[i], "score": float(scores[i])} for i in order
        ]
        if self.cuts is not None:
            applies = results[0] > self.cuts
            found = [
                {**label, "applies": bool(applies[i])}
                for label, i in zip(found, order, strict=True)
            ]
        return found

    def shape(self, answers: list[Any], *, listed: bool) -> Any:
        """Return one list of labels per input, even for a single input."""
        del listed
        return answers

    def _usual_function(self) -> str:
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"


def _pair(value: Any) -> tuple[str, str | None]:
    if isinstance(value, list):
        raise UserError(
            'inputs holds a list inside a list; send a pair as {"text": …, "text_pair": …}'
        )
    if not isinstance(value, dict):
        return text_of(value), None
    pair = fields_of(value, ["text"], ["text_pair"])
    second = pair.get("text_pair")
    return text_of(pair["text"], "text"), None if second is None else text_of(second, "text_pair")


def stored_temperature(folder: Path) -> float:
    """Read a model's temperature from the calibration.json of `trainyard eval`; 1 without the file.

    Raises:
        UserError: The file has no valid temperature.
    """
    path = folder / "calibration.json"
    if not path.is_file():
        return 1.0
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["temperature"]
    except (OSError, ValueError, TypeError, KeyError):
        found = None
    if type(found) not in (int, float) or not COLDEST <= found <= HOTTEST:
        raise UserError(
            f"{path} holds the temperature {repr(found)[:40]}, expected a number from {COLDEST:g} to "
            f"{HOTTEST:g}; store it again by `trainyard eval --calibrate`, or remove the file"
        )
    return float(found)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the logistic function of each element, without overflow."""
    exponential: NDArray[np.float32] = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + exponential), exponential / (1 + exponential))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True))


_FUNCTIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "none": np.asarray,
}
