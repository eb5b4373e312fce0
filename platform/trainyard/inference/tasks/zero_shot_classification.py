"""Zero-shot classification: labels chosen by the request, scored by an entailment model.

The method is from Yin et al. 2019, "Benchmarking Zero-shot Text Classification". Each pair of text
and candidate label is one row, so pairs of all queued requests can share a forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import MaxLen

from trainyard.errors import UserError
from trainyard.inference.parameters import Strict, Truncation, text_of
from trainyard.inference.request_tokens import Item
from trainyard.inference.row_limits import Budget
from trainyard.inference.tasks.text_classification import SequenceClassifier, softmax

LABEL_CHARACTERS = 1000
"""Maximum length of a label and of the template: both are tokenized again with each text."""

TOKEN_CHARACTERS = 16
"""Characters of a text that count as one token for the budget. A long word or a run of spaces can
be few tokens, but is tokenized again with each label."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassificationParameters(Strict):
    """Parameters of a request."""

    candidate_labels: list[str] | str
    """Candidate labels: a list, or one text with commas."""
    multi_label: bool = False
    """Score each label independently. Default: the scores of all labels sum to 1."""
    hypothesis_template: Annotated[str, MaxLen(LABEL_CHARACTERS)] = "This example is {}."
    """Hypothesis that the model tests against the text; {} is replaced by the label."""
    truncation: Truncation = "only_first"
    """Truncate texts (never labels) that are too long for the model, or refuse them (false)."""

    @property
    def labels(self) -> list[str]:
        given = self.candidate_labels
        return (
            [label.strip() for label in given.split(",") if label.strip()]
            if isinstance(given, str)
            else given
        )


class ZeroShotClassification(SequenceClassifier):
    """Candidate labels with scores, best first. `inputs` is a text or a list of texts."""

    task = "zero-shot-classification"
    parameters = ZeroShotClassificationParameters
    example: Mapping[str, Any] = {
        "inputs": "The train was two hours late.",
        "parameters": {"candidate_labels": ["travel", "cooking"]},
    }

    def check_model(self) -> None:
        """Find the model's entailment output.

        Raises:
            UserError: The model has no entailment output, or the tokenizer no padding token.
        """
        super().check_model()
        found = [i for i, name in enumerate(self.labels) if name.lower().startswith("entail")]
        if not found or len(self.labels) < 2:
            raise UserError(
                f"none of the model's labels ({', '.join(self.labels)}) is entailment, which "
                f"{self.task} needs; use a model trained on natural language inference, such as mnli"
            )
        self.entailment = found[0]
        # transformers' convention: the first label, or the last one if entailment is first.
        self.contradiction = len(self.labels) - 1 if self.entailment == 0 else 0

    def encode(self, inputs: list[Any], parameters: ZeroShotClassificationParameters) -> list[Item]:
        """Build one item per text, with one row per candidate label.

        Raises:
            UserError: There is no label, a label or a text is too long, or the template does not
                have exactly one `{}`.
            TooLargeError: The pairs exceed the limits of a request.
        """
        template, labels = parameters.hypothesis_template, parameters.labels
        if not labels:
            raise UserError("parameters.candidate_labels is empty; send at least one label")
        if (places := template.count("{}")) != 1:
            raise UserError(
                f"parameters.hypothesis_template is {template!r}, which has {places or 'no'} {{}} where "
                'the label goes; send one, for example "This text is about {}."'
            )
        budget = Budget(self.limits)
        budget.spend(len(inputs) * len(labels), "pairs of a text and a label")
        if (longest := max(len(text_of(label, "a label")) for label in labels)) > LABEL_CHARACTERS:
            raise UserError(
                f"a label has {longest} characters, more than {LABEL_CHARACTERS}; send a shorter one"
            )
        # Not str.format: a request's format string could read attributes and exhaust the memory.
        hypotheses = [template.replace("{}", label) for label in labels]
        items = []
        for text in map(text_of, inputs):
            text, length, cut = self._shortened(text, parameters.truncation)
            budget.spend(0, "pairs", max(length, len(text) // TOKEN_CHARACTERS) * len(labels))
            tokens = self.tokenize(
                [text] * len(labels), hypotheses, truncation=parameters.truncation
            )
            items.append(Item(self.rows_of(tokens), cut + max(tokens.truncated)))
        return items

    def _shortened(self, text: str, truncation: Truncation) -> tuple[str, int, int]:
        """Cut the tail of a long text before truncation.

        The text is tokenized again with each label, and a long tail would cost time.

        Returns:
            The text, the number of tokens that count for the budget, and the number cut off.
        """
        options: dict[str, Any] = {"limit": 2**31, "add_special_tokens": False}
        fast = self.tokenizer.is_fast
        whole = self.tokenize([text], return_offsets_mapping=fast, **options).encoding
        length = len(whole["input_ids"][0])
        # The last tokens depend on the text that follows, so keep some more than fit.
        kept = (self.max_tokens or 2**31) + 64
        if not fast or truncation not in (True, "only_first", "longest_first") or length <= kept:
            return text, length, 0
        text = text[: whole["offset_mapping"][0][kept - 1][1]]
        left = len(self.tokenize([text], **options).encoding["input_ids"][0])
        return text, kept - 64, length - left

    def decode(
        self, item: Item, results: list[Any], parameters: ZeroShotClassificationParameters
    ) -> list[dict[str, Any]]:
        del item
        logits = np.stack(results)
        if parameters.multi_label or len(results) == 1:
            scores = softmax(logits[:, [self.contradiction, self.entailment]])[:, 1]
        else:
            scores = softmax(logits[:, self.entailment])
        order, labels = np.argsort(-scores, kind="stable"), parameters.labels
        return [{"label": labels[i], "score": float(scores[i])} for i in order]
