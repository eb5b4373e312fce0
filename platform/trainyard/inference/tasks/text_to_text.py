"""Summarization, translation and other text-to-text tasks of encoder-decoders."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from trainyard.errors import UserError
from trainyard.inference.generation import (
    DEFAULT_NEW_TOKENS,
    Count,
    GenerateParameters,
    Generator,
    given,
)
from trainyard.inference.parameters import Truncation, check_parameters, text_of
from trainyard.inference.request_tokens import NO_TOKEN, Item
from trainyard.inference.row_limits import Budget


@dataclass(frozen=True, kw_only=True)
class DecodingParameters(GenerateParameters):
    """Parameters of generation, named as in transformers for encoder-decoders."""

    max_length: Count | None = None
    """Maximum tokens of the answer, including the start token; max_new_tokens has precedence."""
    min_length: Annotated[int, Ge(0)] | None = None
    """Minimum tokens of the answer, including the start token."""


@dataclass(frozen=True, kw_only=True)
class TextToTextParameters(DecodingParameters):
    """Parameters of a request; generation parameters are accepted in `generate_parameters`, too."""

    truncation: Truncation = False
    """Truncate texts that are too long for the model instead of refusing them."""
    clean_up_tokenization_spaces: bool | None = None
    """Remove spaces before punctuation. Default: the tokenizer's setting."""
    generate_parameters: dict[str, Any] | None = None
    """Parameters of generation; they have precedence."""


@dataclass(frozen=True, kw_only=True)
class TranslationParameters(TextToTextParameters):
    """Parameters of a request."""

    src_lang: str | None = None
    """Language of the text, as the model names it."""
    tgt_lang: str | None = None
    """Language of the answer, as the model names it."""


class TextToText(Generator):
    """`num_return_sequences` answers per text. `inputs` is a text or a list of texts."""

    task = "text2text-generation"
    auto_model = "AutoModelForSeq2SeqLM"
    architectures: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration", "MTModel")
    parameters = TextToTextParameters
    example: Mapping[str, Any] = {"inputs": "Trains leave.", "parameters": {"max_new_tokens": 8}}
    answer = "generated_text"

    def encode(self, inputs: list[Any], parameters: TextToTextParameters) -> list[Item]:
        # The model's defaults for the task: T5 models need a prefix such as `summarize: `.
        recipe = self.recipe(parameters)
        prefix = recipe.get("prefix") or ""
        decoding = check_parameters(DecodingParameters, self._requested(parameters), self.task)
        options = self.options(given(decoding), {**recipe, **self.forced(parameters)})
        length = self._new_tokens(given(decoding), recipe)
        budget = Budget(self.limits)
        items = []
        for value in inputs:
            tokens = self.tokenize_source(prefix + text_of(value), parameters)
            ids = list(tokens.encoding["input_ids"][0])
            if not ids:
                raise UserError(NO_TOKEN)
            rows = self.rows(ids, options, decoding, budget, max_new_tokens=length)
            items.append(Item(rows, tokens.truncated[0]))
        return items

    def _requested(self, parameters: TextToTextParameters) -> dict[str, Any]:
        names = {field.name for field in fields(DecodingParameters)}
        requested = {name: value for name, value in given(parameters).items() if name in names}
        return requested | (parameters.generate_parameters or {})

    def _new_tokens(self, requested: Mapping[str, Any], recipe: Mapping[str, Any]) -> int:
        length = DEFAULT_NEW_TOKENS
        for source in (requested, recipe, self.defaults):
            if source.get("max_new_tokens"):
                length = int(source["max_new_tokens"])
                break
            if source.get("max_length"):
                length = max(1, int(source["max_length"]) - 1)
                break
        positions = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        if not requested.keys() & {"max_new_tokens", "max_length"}:
            return min(length, positions, self.limits.new_tokens or length)
        if length > positions:
            raise UserError(
                f"parameters.max_new_tokens is {length}; the model has {positions} positions for its "
                "answer, so send at most that"
            )
        self.check_new_tokens(length)
        return length

    def recipe(self, parameters: Any) -> dict[str, Any]:
        """Return the model's defaults for the task, from `task_specific_params` of its config."""
        del parameters
        every = getattr(self.model.config, "task_specific_params", None) or {}
        return dict(every.get(self.task) or {})

    def forced(self, parameters: Any) -> dict[str, Any]:
        """Return options of generation that parameters of the request imply; by default, none."""
        del parameters
        return {}

    def tokenize_source(self, text: str, parameters: Any) -> Any:
        return self.tokenize([text], truncation=parameters.truncation)

    def decode(self, item: Item, results: list[Any], parameters: TextToTextParameters) -> Any:
        del item
        options = {}
        if parameters.clean_up_tokenization_spaces is not None:
            options["clean_up_tokenization_spaces"] = parameters.clean_up_tokenization_spaces
        return [
            {self.answer: self.text(generated, **options)}
            for result in results
            for generated in result
        ]

    def shape(self, answers: list[Any], *, listed: bool) -> Any:
        """Arrange the answers as transformers 4 does.

        A single input gives a list of its answers. A list gives a flat list for one answer per
        input, else a list of answers per input.
        """
        if not listed:
            return answers[0]
        return answers if len(answers[0]) > 1 else [answer for [answer] in answers]


class Summarization(TextToText):
    """One summary per text, or `num_return_sequences`."""

    task = "summarization"
    architectures = ()
    answer = "summary_text"


class Translation(TextToText):
    """One translation per text, or `num_return_sequences`; some models need both languages."""

    task = "translation"
    architectures = ()
    parameters = TranslationParameters
    answer = "translation_text"

    def recipe(self, parameters: TranslationParameters) -> dict[str, Any]:
        """Return the model's defaults for the two languages, or its only defaults for translation.

        Raises:
            UserError: Only one language is given, or the model has no defaults for the two.
        """
        every = getattr(self.model.config, "task_specific_params", None) or {}
        known = {name: value for name, value in every.items() if name.startswith("translation")}
        source, target = parameters.src_lang, parameters.tgt_lang
        if (source is None) != (target is None):
            raise UserError("parameters: src_lang and tgt_lang go together; send both or none")
        if source is None or self._multilingual:
            return dict(next(iter(known.values()))) if len(known) == 1 else {}
        name = f"translation_{source}_to_{target}"
        if name not in known:
            raise UserError(
                f"the model does not translate from {source!r} to {target!r}; it knows "
                f"{', '.join(known) or 'one pair of languages, so leave both out'}"
            )
        return dict(known[name])

    @property
    def _multilingual(self) -> bool:
        return hasattr(self.tokenizer, "src_lang")

    def forced(self, parameters: TranslationParameters) -> dict[str, Any]:
        """Return the target language's token as `forced_bos_token_id`; empty unless multilingual.

        Raises:
            UserError: The model is multilingual, and a language is missing or unknown.
        """
        if not self._multilingual:
            return {}
        if parameters.tgt_lang is None:
            raise UserError(
                "the model translates between many languages; send src_lang and tgt_lang, as "
                f"{' and '.join(self._languages()[:2])}"
            )
        for name in (parameters.src_lang, parameters.tgt_lang):
            if name not in self._languages():
                raise UserError(
                    f"the model does not know the language {name!r}; it knows "
                    f"{', '.join(self._languages()[:12])}, …"
                )
        id_of = getattr(self.tokenizer, "get_lang_id", self.tokenizer.convert_tokens_to_ids)
        return {"forced_bos_token_id": int(id_of(parameters.tgt_lang))}

    def _languages(self) -> list[str]:
        codes = (
            getattr(self.tokenizer, "lang_code_to_id", None) or self.tokenizer.extra_special_tokens
        )
        return list(codes)

    def tokenize_source(self, text: str, parameters: TranslationParameters) -> Any:
        if parameters.src_lang is None or not self._multilingual:
            return super().tokenize_source(text, parameters)
        with self.cutter() as tokenizer:
            tokenizer.src_lang = parameters.src_lang
            return self.tokenize([text], truncation=parameters.truncation, tokenizer=tokenizer)
