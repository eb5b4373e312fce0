"""Zero-shot classification: labels chosen by the request, judged by a model of entailment.

Each text with each candidate label is one row, so that all pairs of all waiting requests can share
a forward pass (Yin et al. 2019, "Benchmarking Zero-shot Text Classification").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainyard.errors import UserError
from trainyard.predictors.inputs import text_of
from trainyard.predictors.parameters import STRICT, Truncation
from trainyard.predictors.rows import Item
from trainyard.predictors.text_classification import SequenceClassifier, softmax


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassificationParameters:
    """What a request may set."""

    __pydantic_config__ = STRICT

    candidate_labels: list[str] | str
    """The labels to choose from: a list, or one text with commas."""
    multi_label: bool = False
    """Judge each label by itself. Default: the scores of all labels sum to 1."""
    hypothesis_template: str = "This example is {}."
    """Sentence that a label makes true or false; {} is where the label goes."""
    truncation: Truncation = "only_first"
    """Cut off texts (never labels) that are too long for the model, or refuse them (false)."""

    @property
    def labels(self) -> list[str]:
        """The candidate labels, one by one."""
        given = self.candidate_labels
        return (
            [label.strip() for label in given.split(",") if label.strip()]
            if isinstance(given, str)
            else given
        )


class ZeroShotClassification(SequenceClassifier):
    """Candidate labels with scores, the best first. `inputs` is a text or a list of texts."""

    task = "zero-shot-classification"
    parameters = ZeroShotClassificationParameters
    example: Mapping[str, Any] = {
        "inputs": "The train was two hours late.",
        "parameters": {"candidate_labels": ["travel", "cooking"]},
    }

    def check_model(self) -> None:
        """The model must know which of its outputs means entailment."""
        super().check_model()
        found = [i for i, name in enumerate(self.labels) if name.lower().startswith("entail")]
        if not found or len(self.labels) < 2:
            raise UserError(
                f"none of the model's labels ({', '.join(self.labels)}) is entailment, which "
                f"{self.task} needs; use a model trained on natural language inference, such as mnli"
            )
        self.entailment = found[0]
        # transformers' convention: the first of the other labels, by position.
        self.contradiction = len(self.labels) - 1 if self.entailment == 0 else 0

    def encode(self, inputs: list[Any], parameters: ZeroShotClassificationParameters) -> list[Item]:
        """One row per candidate label of each text."""
        template, labels = parameters.hypothesis_template, parameters.labels
        if not labels:
            raise UserError("parameters.candidate_labels is empty; send at least one label")
        if "{}" not in template:
            raise UserError(
                f"parameters.hypothesis_template is {template!r}, which has no {{}} where the label "
                'goes; send for example "This text is about {}."'
            )
        # Not str.format: a request's format string could read attributes and fill the memory.
        hypotheses = [template.replace("{}", text_of(label, "a label")) for label in labels]
        items = []
        for text in map(text_of, inputs):
            tokens = self.tokenize(
                [text] * len(labels), hypotheses, truncation=parameters.truncation
            )
            items.append(Item(self.rows_of(tokens), max(tokens.truncated)))
        return items

    def decode(
        self, item: Item, results: list[Any], parameters: ZeroShotClassificationParameters
    ) -> list[dict[str, Any]]:
        """Sorted labels with scores."""
        del item
        logits = np.stack(results)
        if parameters.multi_label or len(results) == 1:
            scores = softmax(logits[:, [self.contradiction, self.entailment]])[:, 1]
        else:
            scores = softmax(logits[:, self.entailment])
        order = np.argsort(-scores, kind="stable")
        return [{"label": parameters.labels[i], "score": float(scores[i])} for i in order]
