"""Embeddings: feature extraction and sentence similarity.

A model in the format of sentence-transformers defines its pooling of token vectors (Reimers &
Gurevych 2019, "Sentence-BERT"). Its settings files are read, but none of its code is run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from trainyard.errors import UserError, one_line
from trainyard.inference.parameters import Strict, fields_of, text_of
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Item
from trainyard.inference.row_limits import Budget
from trainyard.models import resolve_model

Vectors = NDArray[np.float32]

POOLINGS: dict[str, Callable[[Vectors], Vectors]] = {
    "mean": lambda tokens: tokens.mean(axis=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(axis=0),
    "lasttoken": lambda tokens: tokens[-1],
    "none": lambda tokens: tokens,
}
"""Poolings of token vectors [tokens, size] to one vector [size]; `none` keeps all token vectors."""


@dataclass(frozen=True)
class SentenceSettings:
    """Settings of a model in the format of sentence-transformers."""

    pooling: str | None = None
    normalize: bool = False
    max_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)


def sentence_settings(name: str, revision: str | None = None) -> SentenceSettings:
    """Read modules.json and the files that it names; a model without modules.json has the defaults.

    Raises:
        UserError: A file is not JSON; modules.json has a module without type or path, with a folder
            outside the model, or of an unsupported type; or the pooling is unsupported.
    """
    modules = _json(name, "modules.json", revision)
    if modules is None:
        return SentenceSettings()
    try:
        kinds = {module["type"].rpartition(".")[2]: Path(module["path"]) for module in modules}
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"model {name}: modules.json is not a list of modules with type and path; copy it again"
        ) from None
    for path in kinds.values():
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"model {name}: modules.json names the folder '{path}', which is outside the model's "
                "folder; copy the whole model again"
            )
    pooling = _json(name, str(kinds.get("Pooling", Path()) / "config.json"), revision) or {}
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, chosen in pooling.items()
        if key.startswith("pooling_mode_") and chosen is True
    ] or [pooling.get("pooling_mode", "")]
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown or modes[1:] or modes[0] not in POOLINGS:
        raise UserError(
            f"model {name} makes sentence vectors by {', '.join([*sorted(unknown), *modes])}, but only "
            f"one pooling of {', '.join(POOLINGS)} and normalization are known here; use another model"
        )
    return SentenceSettings(
        pooling=modes[0],
        normalize="Normalize" in kinds,
        max_tokens=(_json(name, "sentence_bert_config.json", revision) or {}).get("max_seq_length"),
        prompts=(_json(name, "config_sentence_transformers.json", revision) or {}).get("prompts")
        or {},
    )


def _json(name: str, file: str, revision: str | None) -> Any:
    from transformers.utils import cached_file

    path = cached_file(
        resolve_model(name),
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(
            f"model {name}: {file} is not valid JSON ({one_line(error)}); copy it again"
        ) from None


class Embedder(Predictor):
    """Base of predictors that pool the token vectors of a model without a task head."""

    auto_model = "AutoModel"
    optional_weights = ("pooler.",)
    settings = SentenceSettings()

    def read_more(self, name: str, revision: str | None) -> None:
        self.settings = sentence_settings(name, revision)
        limits = [n for n in (self.settings.max_tokens, self.max_tokens) if n is not None]
        self.max_tokens = min(limits, default=None)

    def results(self, rows: Any, outputs: Any) -> list[Any]:
        """Pool the token vectors of each row: to [size], or [tokens, size] without pooling."""
        states = self.tokens_of(outputs.last_hidden_state.float().cpu(), rows)
        return [
            POOLINGS[row.wanted](vectors.numpy()) for row, vectors in zip(rows, states, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionParameters(Strict):
    """Parameters of a request; `InferenceClient` sends them next to `inputs`, not in `parameters`."""

    normalize: bool | None = None
    """Scale vectors to length 1. Default: the model's setting."""
    pooling: Literal["mean", "cls", "max", "lasttoken", "none"] | None = None
    """Pooling of token vectors; none returns all of them. Default: the model's setting."""
    prompt_name: str | None = None
    """Put the model's prompt of this name before the texts."""
    truncate: bool = False
    """Truncate texts that are too long for the model instead of refusing them."""
    truncation_direction: Literal["left", "right"] = "right"
    """End of the text that is cut off."""
    dimensions: Annotated[int, Ge(1)] | None = None
    """Size to which each vector is cut before scaling; for models trained for shorter vectors."""
    encoding_format: Literal["float"] = "float"
    """Vectors are lists of numbers; base64 is not supported."""


class FeatureExtraction(Embedder):
    """One vector per text, or one per token if the model defines no pooling.

    The answer is nested for a single text, too: [1, size] or [1, tokens, size].
    """

    task = "feature-extraction"
    architectures = ("Model",)
    parameters = FeatureExtractionParameters
    example: Mapping[str, Any] = {"inputs": "A sentence."}

    def encode(self, inputs: list[Any], parameters: FeatureExtractionParameters) -> list[Item]:
        size = self.model.config.hidden_size
        if (parameters.dimensions or 0) > size:
            raise UserError(
                f"parameters.dimensions is {parameters.dimensions}, but the model's vectors have {size} "
                "numbers; send at most that"
            )
        prompt = ""
        if parameters.prompt_name is not None:
            prompts = self.settings.prompts
            if parameters.prompt_name not in prompts:
                raise UserError(
                    f"parameters.prompt_name is {parameters.prompt_name!r}, but the model has "
                    + (f"the prompts {', '.join(prompts)}" if prompts else "no prompts")
                    + "; send one of them or none"
                )
            prompt = prompts[parameters.prompt_name]
        tokens = self.tokenize(
            [prompt + text_of(value) for value in inputs],
            truncation=parameters.truncate,
            side=parameters.truncation_direction,
        )
        rows = self.rows_of(tokens)
        if self._pooling(parameters) == "none":
            total = size * sum(row.length for row in rows)
            Budget(self.limits).spend(0, "vectors", numbers=total)
        for row in rows:
            row.wanted = self._pooling(parameters)
        return [Item([row], cut) for row, cut in zip(rows, tokens.truncated, strict=True)]

    def _pooling(self, parameters: FeatureExtractionParameters) -> str:
        return parameters.pooling or self.settings.pooling or "none"

    def decode(
        self, item: Item, results: list[Any], parameters: FeatureExtractionParameters
    ) -> Any:
        del item
        vectors = results[0][..., : parameters.dimensions]
        wanted = self.settings.normalize and self._pooling(parameters) != "none"
        if wanted if parameters.normalize is None else parameters.normalize:
            vectors = unit(vectors)
        answer = vectors.tolist()
        return [answer] if self._pooling(parameters) == "none" else answer

    def shape(self, answers: list[Any], *, listed: bool) -> Any:
        """Nest token vectors like transformers, and text vectors like text-embeddings-inference."""
        single_tokens = not listed and isinstance(answers[0][0], list)
        return answers[0] if single_tokens else answers


@dataclass(frozen=True, kw_only=True)
class SentenceSimilarityParameters(Strict):
    """Parameters of a request."""

    truncation: bool = False
    """Truncate texts that are too long for the model instead of refusing them."""


class SentenceSimilarity(Embedder):
    """Cosines between one sentence and others, between -1 and 1.

    `inputs` is `{"source_sentence": …, "sentences": […]}` or a list of such objects. The default
    pooling is the mean, as in sentence-transformers.
    """

    task = "sentence-similarity"
    architectures = ()
    parameters = SentenceSimilarityParameters
    example: Mapping[str, Any] = {
        "inputs": {"source_sentence": "A train leaves.", "sentences": ["A train goes.", "Soup."]},
        "parameters": {},
    }

    def encode(self, inputs: list[Any], parameters: SentenceSimilarityParameters) -> list[Item]:
        """Build an item per input: one row for the source sentence, then one per other sentence."""
        budget = Budget(self.limits)
        items = []
        for value in inputs:
            given = fields_of(value, ["source_sentence", "sentences"])
            sentences = given["sentences"]
            if not isinstance(sentences, list) or not sentences:
                raise UserError("sentences must be a list of at least one text")
            budget.spend(1 + len(sentences), "sentences")
            texts = [text_of(given["source_sentence"], "source_sentence")]
            texts += [text_of(sentence, "a sentence") for sentence in sentences]
            tokens = self.tokenize(texts, truncation=parameters.truncation)
            rows = self.rows_of(tokens)
            for row in rows:
                row.wanted = self.settings.pooling or "mean"
            items.append(Item(rows, sum(tokens.truncated)))
        return items

    def decode(
        self, item: Item, results: list[Any], parameters: SentenceSimilarityParameters
    ) -> list[float]:
        del item, parameters
        source, *others = map(unit, results)
        return [float(np.clip(source @ other, -1, 1)) for other in others]


def unit(vectors: Vectors) -> Vectors:
    """Scale vectors along the last axis to length 1 (zero vectors stay zero)."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))
