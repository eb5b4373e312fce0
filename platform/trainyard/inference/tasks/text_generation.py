"""Text generation with decoders: sampling, greedy or beam search; whole or streamed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen

from trainyard.errors import UserError
from trainyard.inference.generation import (
    DEFAULT_NEW_TOKENS,
    Count,
    GenerateParameters,
    Generator,
    given,
)
from trainyard.inference.parameters import text_of
from trainyard.inference.request_tokens import Item, Prepared
from trainyard.inference.row_limits import Budget
from trainyard.inference.sampling import Generated

Stop = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class TextGenerationParameters(GenerateParameters):
    """Parameters of a request, named as in text-generation-inference and transformers."""

    max_length: Count | None = None
    """Maximum tokens of prompt and answer together; max_new_tokens has precedence."""
    stop: Annotated[list[Stop], MaxLen(16)] | None = None
    """Texts that end generation; the one found stays in the answer."""
    return_full_text: bool | None = None
    """Put the prompt before the answer."""
    details: bool | None = None
    """Return every token with its log-probability, and the finish reason."""
    frequency_penalty: Annotated[float, Ge(-2), Le(2)] | None = None
    """Above 0, tokens become less likely with each earlier occurrence in the generated text."""
    truncate: Count | None = None
    """Maximum number of prompt tokens; the prompt's end is kept."""
    best_of: Count | None = None
    """Only 1: use num_return_sequences for several candidates."""
    decoder_input_details: bool | None = None
    """Only false: log-probabilities of the prompt are not computed."""
    top_n_tokens: Annotated[int, Ge(0)] | None = None
    """Only 0: alternatives to the chosen token are not returned."""
    watermark: bool | None = None
    """Only false."""
    adapter_id: str | None = None
    """Only none: serve an adapter as a separate model."""
    grammar: dict[str, Any] | None = None
    """Only none."""

    def check(self) -> None:
        """Check for values that `InferenceClient` can send but the server does not support.

        Raises:
            UserError: A value is not supported.
        """
        for name, neutral in (
            ("best_of", 1), ("decoder_input_details", False), ("top_n_tokens", 0),
            ("watermark", False), ("adapter_id", None), ("grammar", None),
        ):  # fmt: skip
            if getattr(self, name) not in (None, neutral):
                raise UserError(f"parameters.{name} is not supported here; leave it out")


class TextGeneration(Generator):
    """Continuations of a prompt. `inputs` is a text or a list of texts.

    The answer to a text is a list of objects with `generated_text`, as `InferenceClient` expects.
    A list of texts gives a list of such lists.
    """

    task = "text-generation"
    auto_model = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    parameters = TextGenerationParameters
    example: Mapping[str, Any] = {"inputs": "A train", "parameters": {"max_new_tokens": 8}}

    def encode(self, inputs: list[Any], parameters: TextGenerationParameters) -> list[Item]:
        parameters.check()
        options = self.options(given(parameters))
        budget = Budget(self.limits)
        items = []
        for value in inputs:
            prompt = text_of(value)
            ids = self.tokenize([prompt], limit=2**31).encoding["input_ids"][0]
            cut = max(0, len(ids) - (parameters.truncate or len(ids)))
            ids = list(ids[cut:]) or self._begin()
            new = self._new_tokens(len(ids), parameters)
            rows = self.rows(
                ids,
                options,
                parameters,
                budget,
                max_new_tokens=new,
                stop=tuple(parameters.stop or ()),
                logprobs=bool(parameters.details),
            )
            if options.get("num_beams", 1) > 1 and (parameters.stop or parameters.details):
                raise UserError("parameters: stop and details need num_beams 1; leave them out")
            items.append(Item(rows, cut, prompt))
        return items

    def _begin(self) -> list[int]:
        if self.tokenizer.bos_token_id is None:
            raise UserError(
                "the prompt has no token, and the model has no start token; send a text"
            )
        return [self.tokenizer.bos_token_id]

    def _new_tokens(self, prompt: int, parameters: TextGenerationParameters) -> int:
        room = 2**31 if self.max_tokens is None else self.max_tokens - prompt
        wanted = parameters.max_new_tokens
        if wanted is None and parameters.max_length is not None:
            wanted = parameters.max_length - prompt
            if wanted < 1:
                raise UserError(
                    f"parameters.max_length is {parameters.max_length}, and the prompt alone has {prompt} "
                    "tokens; send a larger one, or max_new_tokens, which does not count the prompt"
                )
        if room < (wanted or 1):
            raise UserError(
                f"the prompt has {prompt} tokens, and with max_new_tokens {wanted or 1} more than the "
                f"{self.max_tokens} that the model takes; shorten one of them, or send truncate to keep "
                "the prompt's end only"
            )
        self.check_new_tokens(wanted or 1)
        usual = self.defaults.get("max_new_tokens", DEFAULT_NEW_TOKENS)
        return wanted or min(room, usual, self.limits.new_tokens or usual)

    def decode(
        self, item: Item, results: list[Any], parameters: TextGenerationParameters
    ) -> list[dict[str, Any]]:
        sequences = [generated for result in results for generated in result]
        return [
            self._answer(item, item.rows[i % len(item.rows)], generated, parameters)
            for i, generated in enumerate(sequences)
        ]

    def _answer(
        self, item: Item, row: Any, generated: Generated, parameters: TextGenerationParameters
    ) -> dict[str, Any]:
        text = self.text(generated)
        answer: dict[str, Any] = {
            "generated_text": item.context + text if parameters.return_full_text else text
        }
        if parameters.details:
            every = range(len(generated.tokens))
            answer["details"] = {
                **self._ending(row, generated),
                "prefill": [],
                "tokens": [self._token(generated, i) for i in every],
            }
        return answer

    def _ending(self, row: Any, generated: Generated) -> dict[str, Any]:
        return {
            "finish_reason": generated.finish_reason,
            "generated_tokens": len(generated.tokens),
            "input_length": len(row.inputs["input_ids"]),
            "seed": row.wanted.seed if row.wanted.options.get("do_sample") else None,
        }

    def _token(self, generated: Generated, i: int) -> dict[str, Any]:
        token = generated.tokens[i]
        return {
            "id": token,
            "logprob": generated.logprobs[i],
            "special": token in self.special,
            "text": generated.pieces[i],
        }

    def stream(self, prepared: Prepared, emit: Callable[[dict[str, Any]], None]) -> None:
        """Send each token of `prepared` to `emit` while `forward` generates it.

        `emit` receives the data of one server-sent event. The last event has `generated_text`: the
        joined texts of all events, after the prompt if `return_full_text` is true. `emit` is called
        in the model's thread and must not block or raise.

        Raises:
            UserError: The request is for several texts, or for beam search.
        """
        rows = prepared.rows
        if len(rows) != 1 or rows[0].wanted.options.get("num_beams", 1) > 1 or prepared.listed:
            raise UserError(
                "only one answer to one text can be streamed, without beam search; send one text, not "
                "a list, with num_beams 1 and num_return_sequences 1"
            )
        (row,) = rows
        sent = ""

        def tell(generated: Generated) -> None:
            nonlocal sent
            if len(generated.tokens) == 1:  # a batch that ran out of memory runs again
                sent = ""
            last = generated.finish_reason is not None
            text = self.text(generated) if last else None
            token = self._token(generated, -1)
            if text is not None:  # an incomplete character at the end is sent, too
                token["text"] = text[len(sent) :]
            sent += token["text"]
            whole = prepared.items[0].context if prepared.parameters.return_full_text else ""
            emit(
                {
                    "index": len(generated.tokens),
                    "token": token,
                    "generated_text": None if text is None else whole + text,
                    "details": self._ending(row, generated) if last else None,
                }
            )

        row.wanted.emit = tell
