"""Token classification: entities in a text, with their positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, MaxLen

from trainyard.errors import UserError
from trainyard.inference.parameters import Strict, Truncation, text_of
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Item
from trainyard.inference.row_limits import Budget

IGNORED_LABELS = 1000
"""Maximum length of `ignore_labels`: the label of each token is compared with every entry."""


@dataclass(frozen=True, kw_only=True)
class TokenClassificationParameters(Strict):
    """Parameters of a request."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "none"
    """Strategy that merges tokens into entities."""
    grouped_entities: bool | None = None
    """Older name of aggregation_strategy: true means simple, unless a strategy is sent."""
    ignore_labels: Annotated[list[str], MaxLen(IGNORED_LABELS)] | None = None
    """Labels to leave out of the answer. Default: O."""
    stride: Annotated[int, Ge(0)] | None = None
    """Tokens by which the chunks of a long text overlap. Default: no chunks."""
    truncation: Truncation = True
    """Without stride: truncate texts that are too long for the model, or refuse them (false)."""

    @property
    def strategy(self) -> str:
        grouped = self.grouped_entities and self.aggregation_strategy == "none"
        return "simple" if grouped else self.aggregation_strategy


class TokenClassification(Predictor):
    """Tokens or entities with label, score and position. `inputs` is a text or a list of texts."""

    task = "token-classification"
    auto_model = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    needs_offsets = True
    parameters = TokenClassificationParameters
    example: Mapping[str, Any] = {
        "inputs": "Ada Lovelace lived in London.",
        "parameters": {"aggregation_strategy": "simple"},
    }

    def check_model(self) -> None:
        from transformers import TokenClassificationPipeline

        self._pipeline = TokenClassificationPipeline(
            model=self.model, tokenizer=self.tokenizer, device=self.model.device
        )

    def encode(self, inputs: list[Any], parameters: TokenClassificationParameters) -> list[Item]:
        """Build one row per text, or with `stride`, one row per chunk of a text.

        Raises:
            UserError: A text is too long, or `stride` does not fit the other parameters.
        """
        texts = [text_of(value) for value in inputs]
        wanted: dict[str, Any] = {
            "return_offsets_mapping": True,
            "return_special_tokens_mask": True,
        }
        if parameters.stride is None:
            tokens = self.tokenize(texts, truncation=parameters.truncation, **wanted)
            owners = range(len(texts))
        else:
            self._check_stride(parameters)
            tokens = self.chunk(
                texts,
                stride=parameters.stride,
                limit=self.max_tokens or 2**31 - 1,
                budget=Budget(self.limits),
                **wanted,
            )
            owners = tokens.encoding["overflow_to_sample_mapping"]
        rows, encoding = self.rows_of(tokens), tokens.encoding
        chunks: list[list[int]] = [[] for _ in texts]
        for i, owner in enumerate(owners):
            chunks[owner].append(i)
        items = []
        for number, (text, mine) in enumerate(zip(texts, chunks, strict=True)):
            context = [
                {
                    "sentence": text,
                    "input_ids": np.array([encoding["input_ids"][i]]),
                    "offset_mapping": np.array([encoding["offset_mapping"][i]]),
                    "special_tokens_mask": encoding["special_tokens_mask"][i],
                }
                for i in mine
            ]
            cut = 0 if parameters.stride is not None else tokens.truncated[number]
            items.append(Item([rows[i] for i in mine], cut, context))
        return items

    def _check_stride(self, parameters: TokenClassificationParameters) -> None:
        if parameters.strategy == "none":
            raise UserError(
                "parameters.stride merges chunks by their entities; send an aggregation_strategy "
                "other than none with it"
            )
        room = self.max_tokens and self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        if room is not None and parameters.stride is not None and parameters.stride >= room:
            raise UserError(
                f"parameters.stride is {parameters.stride}; it must be less than the {room} tokens of "
                "text that the model takes at once"
            )

    def decode(
        self, item: Item, results: list[Any], parameters: TokenClassificationParameters
    ) -> list[dict[str, Any]]:
        """Build tokens or entities by the rules of transformers' `TokenClassificationPipeline`."""
        import torch
        from transformers.pipelines.token_classification import AggregationStrategy

        outputs = [
            {
                **chunk,
                "special_tokens_mask": torch.tensor([chunk["special_tokens_mask"]]),
                "logits": torch.from_numpy(logits)[None],
            }
            for chunk, logits in zip(item.context, results, strict=True)
        ]
        found = self._pipeline.postprocess(
            outputs,
            aggregation_strategy=AggregationStrategy(parameters.strategy),
            ignore_labels=parameters.ignore_labels,
        )
        return [{**entity, "score": float(entity["score"])} for entity in found]
