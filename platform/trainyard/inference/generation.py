"""Common parts of all tasks that generate text: parameters, defaults of the model, batches.

Rows of different requests share a batch if their options are equal. Seeds and stop texts may
differ, and so may maximum lengths of decoders without beams. A row's text does not depend on the
other rows of its batch, see `sampling`.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from trainyard.errors import UserError
from trainyard.inference.parameters import Strict
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Prepared, Row
from trainyard.inference.row_limits import Budget
from trainyard.inference.sampling import Generated, Sampler, Wanted, Watcher
from trainyard.models import Padding

Count = Annotated[int, Ge(1)]
Fraction = Annotated[float, Gt(0), Le(1)]

DEFAULT_NEW_TOKENS = 100
"""Maximum number of generated tokens if neither the request nor the model sets it."""

GENERATE = (
    "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "num_beams", "length_penalty",
    "early_stopping", "min_length", "forced_bos_token_id",
)  # fmt: skip
"""Options that transformers' `generate` applies."""

SAMPLE = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "frequency_penalty")
"""Options that `sampling.Sampler` applies."""

KEPT = (
    "bos_token_id", "eos_token_id", "decoder_start_token_id", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens",
)  # fmt: skip
"""Options of a model's generation_config.json that stay in effect, next to GENERATE and SAMPLE.

The file can also name caches, assistant models and decoding code on the Hub. A server must not use
these.
"""


@dataclass(frozen=True, kw_only=True)
class GenerateParameters(Strict):
    """Parameters of every task that generates text; defaults are the model's."""

    max_new_tokens: Count | None = None
    """Maximum number of tokens to generate."""
    min_new_tokens: Annotated[int, Ge(0)] | None = None
    """Minimum number of tokens to generate."""
    do_sample: bool | None = None
    """Sample tokens. Default: the model's setting; true if one of the next four is set, or if several
    texts are requested without beams."""
    temperature: Annotated[float, Gt(0)] | None = None
    """Sampling temperature; below 1, likely tokens become more likely."""
    top_k: Annotated[int, Ge(0)] | None = None
    """Sample from the K most likely tokens only; 0 means no limit."""
    top_p: Fraction | None = None
    """Sample from the most likely tokens that make up this probability."""
    typical_p: Fraction | None = None
    """Sample from the most typical tokens that make up this probability (Meister et al. 2022)."""
    repetition_penalty: Annotated[float, Ge(0.01), Le(100)] | None = None
    """Above 1, repeated tokens become less likely (Keskar et al. 2019)."""
    no_repeat_ngram_size: Annotated[int, Ge(0)] | None = None
    """Size of the n-grams that may occur only once."""
    num_beams: Annotated[int, Ge(1), Le(64)] | None = None
    """Width of beam search; 1 means no beam search."""
    length_penalty: Annotated[float, Ge(-10), Le(10)] | None = None
    """With beams: above 0, longer texts are preferred."""
    early_stopping: bool | None = None
    """With beams: stop when `num_beams` texts are complete."""
    num_return_sequences: Annotated[int, Ge(1), Le(64)] = 1
    """Texts per input; more than one are sampled, or need num_beams of at least this number."""
    seed: Annotated[int, Ge(0)] | None = None
    """Seed of sampling; results do not depend on other requests. Default: random, sent in details."""


class Generator(Predictor):
    """Base of predictors that generate text with a decoder or an encoder-decoder."""

    def check_model(self) -> None:
        """Take request defaults from the model's generation config, and reduce it to `KEPT`.

        The padding token and, for an encoder-decoder, `forced_eos_token_id` stay too.
        """
        from transformers import GenerationConfig

        config = self.model.generation_config
        self._joint = bool(self.model.config.is_encoder_decoder)
        defaults, kept = [*GENERATE, *SAMPLE, "max_new_tokens"], list(KEPT)
        if self._joint:
            defaults.append("max_length")
            kept.append("forced_eos_token_id")
        else:  # a decoder counts the prompt and its padding, too
            defaults.remove("min_length")
        self.defaults = _present(config, defaults)
        self._kept = {**_present(config, kept), "pad_token_id": self.pad_token_id}
        self.model.generation_config = GenerationConfig(**self._kept)
        self.special = set(self.tokenizer.all_special_ids)
        end = self._kept.get("eos_token_id")
        self._end = set(end if isinstance(end, list) else [] if end is None else [end])

    def options(self, given: Mapping[str, Any], base: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Merge the generation options of request, task and model, in this order of precedence.

        Args:
            given: Options of the request; None values are ignored.
            base: Options of the task.

        Raises:
            UserError: Beam search, sampling and the number of texts contradict each other.
        """
        requested = {name: value for name, value in given.items() if value is not None}
        if requested.keys() & {"temperature", "top_k", "top_p", "typical_p"}:
            requested.setdefault("do_sample", True)
        every = {**self.defaults, **base, **requested}
        options = {name: every[name] for name in (*GENERATE, *SAMPLE) if name in every}
        # Beams and sampling exclude each other: the request wins over a default.
        if requested.get("do_sample") and "num_beams" not in requested:
            options["num_beams"] = 1
        beams = options.get("num_beams") or 1
        if beams > 1 and "do_sample" not in requested:
            options["do_sample"] = False
        many = requested.get("num_return_sequences", 1)
        if many > 1 and beams == 1 and "do_sample" not in requested:
            options["do_sample"] = True
        sample = bool(options.get("do_sample"))
        fault = None
        if beams > 1 and sample:
            fault = "num_beams above 1 and do_sample exclude each other"
        elif beams > 1 and many > beams:
            fault = f"num_return_sequences is {many}, but num_beams only {beams}"
        elif beams == 1 and many > 1 and not sample:
            fault = f"num_return_sequences is {many}, but do_sample is false, so all would be equal"
        if fault:
            raise UserError(f"parameters: {fault}; change one of the two")
        return options | ({"num_return_sequences": many} if beams > 1 else {})

    def check_new_tokens(self, wanted: int) -> None:
        most = self.limits.new_tokens
        if most is not None and wanted > most:
            raise UserError(
                f"parameters.max_new_tokens is {wanted}; at most {most} tokens are generated here for "
                "one text, so send at most that"
            )

    def rows(
        self,
        ids: list[int],
        options: dict[str, Any],
        parameters: Any,
        budget: Budget,
        **wanted: Any,
    ) -> list[Row]:
        """Build the rows of one input: one row per text, or a single row for beam search.

        Args:
            ids: Token ids of the input.
            options: Options from `options`.
            parameters: Parameters of the request.
            budget: Budget of the request.
            wanted: Further fields of `Wanted`, at least `max_new_tokens`.

        Raises:
            TooLargeError: The rows exceed the budget.
        """
        beams = options.get("num_beams", 1)
        seed = secrets.randbits(32) if parameters.seed is None else parameters.seed
        length = wanted["max_new_tokens"]
        many = 1 if beams > 1 else parameters.num_return_sequences
        occupied = (len(ids) + length) * beams
        budget.spend(many, "texts to generate", many * occupied)
        group = json.dumps([options, length if beams > 1 or self._joint else None], sort_keys=True)
        return [
            Row(
                {"input_ids": ids},
                occupied,
                group,
                Wanted(options=options, seed=seed, index=i, **wanted),
            )
            for i in range(many)
        ]

    def stop_when(self, prepared: Prepared, cancelled: Callable[[], bool]) -> None:
        """End the rows of one request once `cancelled()` is true.

        `cancelled` is called after each token, in the thread of `forward`.
        """
        for row in prepared.rows:
            row.wanted.cancelled = cancelled

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        """Generate texts for rows of one group; return a list of `Generated` for each row."""
        import torch

        results: list[Any] = [None] * len(rows)
        with torch.inference_mode():
            for part in self._parts(rows):
                chosen = [rows[i] for i in part]
                beams = chosen[0].wanted.options.get("num_beams", 1) > 1
                found = self._search(chosen) if beams else self._draw(chosen)
                for i, result in zip(part, found, strict=True):
                    results[i] = result
        return results

    def _parts(self, rows: Sequence[Row]) -> list[list[int]]:
        """Split rows into passes that fit the model's positions; return row indices by pass.

        A finished row uses positions until the last row of its pass finishes.
        """
        if self.max_tokens is None or self._joint:
            return [list(range(len(rows)))]
        parts: list[list[int]] = []
        longest = 0
        for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].inputs["input_ids"])):
            more = max(longest, rows[i].wanted.max_new_tokens)
            if parts and len(rows[parts[-1][0]].inputs["input_ids"]) + more <= self.max_tokens:
                parts[-1].append(i)
                longest = more
            else:
                parts.append([i])
                longest = rows[i].wanted.max_new_tokens
        return parts

    def _generate(self, rows: Sequence[Row], **more: Any) -> Any:
        from transformers import GenerationConfig

        options = rows[0].wanted.options
        names = [name for name in (*GENERATE, "num_return_sequences") if name in options]
        config = GenerationConfig(
            **self._kept,
            **{name: options[name] for name in names},
            max_new_tokens=max(row.wanted.max_new_tokens for row in rows),
            do_sample=False,
        )
        return self.model.generate(
            **self.pad(rows, Padding("right" if self._joint else "left")),
            generation_config=config,
            **more,
        )

    def _draw(self, rows: Sequence[Row]) -> list[list[Generated]]:
        wanted = [row.wanted for row in rows]
        sampler = Sampler(wanted)
        watcher = Watcher(wanted, sampler, self.tokenizer, self._end)
        self._generate(rows, logits_processor=[sampler], stopping_criteria=[watcher])
        return [[generated] for generated in watcher.generated]

    def _search(self, rows: Sequence[Row]) -> list[list[Generated]]:
        import torch

        many = rows[0].wanted.options["num_return_sequences"]

        def all_gone(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            del scores, kwargs
            gone = all(row.wanted.gone for row in rows)
            return torch.full((len(input_ids),), gone, device=input_ids.device)

        sequences = self._generate(rows, stopping_criteria=[all_gone]).tolist()
        prompt = 1 if self._joint else max(len(row.inputs["input_ids"]) for row in rows)
        found = [self._cut(sequence[prompt:]) for sequence in sequences]
        return [found[i * many : (i + 1) * many] for i in range(len(rows))]

    def _cut(self, tokens: list[int]) -> Generated:
        for i, token in enumerate(tokens):
            if token in self._end:
                return Generated(tokens[: i + 1], finish_reason="eos_token")
        return Generated(tokens, finish_reason="length")

    def text(self, generated: Generated, **options: Any) -> str:
        return str(self.tokenizer.decode(generated.tokens, skip_special_tokens=True, **options))


def _present(config: Any, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def given(parameters: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(parameters).items() if value is not None}
