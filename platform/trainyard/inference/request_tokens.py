"""Tokenization of requests: a request has items, one per input, and an item has rows of tokens.

Tokenization is thread-safe. Texts are truncated only on request, and tokens cut off are counted.
"""

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainyard.errors import UserError
from trainyard.inference.parameters import Truncation
from trainyard.inference.row_limits import Budget

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

NO_TOKEN = "the text has no token that the model knows; send a text"


@dataclass(slots=True, eq=False)
class Row:
    """One sequence of tokens in a batch."""

    inputs: dict[str, list[int]]
    """Unpadded values, one per token, by name of the model's input; without the attention mask."""
    length: int
    """Tokens that the row occupies in a batch, including those to be generated."""
    group: str = ""
    """Key of batching: only rows of equal groups may share a forward pass."""
    wanted: Any = None
    """Data of the task for `forward`: selection from the model's output, or generation options."""


@dataclass(frozen=True, slots=True)
class Item:
    rows: list[Row]
    """One row, or several for long texts and candidate labels."""
    truncated: int = 0
    """Number of tokens cut off."""
    context: Any = None
    """Data of the task for `Predictor.decode`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Checked and tokenized request."""

    items: list[Item]
    listed: bool
    """True if `inputs` was a list; then the answer is a list, too."""
    parameters: Any
    """Instance of the task's parameters dataclass."""

    @property
    def rows(self) -> list[Row]:
        """Rows of all items, in the order of results for `Predictor.postprocess`."""
        return [row for item in self.items for row in item.rows]

    @property
    def truncated(self) -> list[int]:
        """Number of tokens cut off from each input."""
        return [item.truncated for item in self.items]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenized texts.

    Attributes:
        encoding: Output of the tokenizer.
        truncated: Number of tokens cut off from each text; empty for chunks.
    """

    encoding: "BatchEncoding"
    truncated: list[int] = field(default_factory=list)


class Tokenizing:
    """Tokenization for one model: whole texts, truncated texts, or chunks of texts.

    Attributes:
        tokenizer: Tokenizer as loaded by transformers; its state never changes.
        max_tokens: Maximum number of tokens of a row, special tokens included; None for no maximum.
        batches_equal_lengths: True if only rows of equal length may share a forward pass.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_tokens: int | None) -> None:
        tokenizer("")  # resets truncation, which tokenizer.json may enable
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.batches_equal_lengths = False
        self._cutter: PreTrainedTokenizerBase | None = None
        self._cutter_lock = threading.RLock()

    def tokenize(
        self,
        texts: list[str],
        pairs: list[str] | None = None,
        *,
        truncation: Truncation = False,
        side: str = "right",
        limit: int | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ) -> Tokens:
        """Tokenize without padding; truncate only if `truncation` allows it.

        Args:
            texts: One text per item.
            pairs: Second text of each item.
            truncation: Treatment of texts that are too long.
            side: End of a text that is cut off, left or right.
            limit: Maximum number of tokens per item. Default: `max_tokens`.
            tokenizer: Tokenizer of texts that need no truncation. Default: `self.tokenizer`.
            options: Further options of the tokenizer.

        Raises:
            UserError: A text is too long, and may not or cannot be truncated.
        """
        limit = self.max_tokens if limit is None else limit
        options |= {"return_attention_mask": False, "verbose": False}
        whole = (tokenizer or self.tokenizer)(texts, pairs, truncation=False, **options)
        lengths = [len(ids) for ids in whole["input_ids"]]
        if limit is None or max(lengths) <= limit:
            return Tokens(whole, [0] * len(lengths))
        if truncation in (False, "do_not_truncate"):
            raise UserError(
                f"the text has {max(lengths)} tokens and only {limit} fit; shorten it, or send "
                '"parameters": {"truncation": true} to have its end cut off'
            )
        with self.cutter() as cutter:
            usual, cutter.truncation_side = cutter.truncation_side, side
            try:
                cut = cutter(texts, pairs, truncation=truncation, max_length=limit, **options)
            except Exception as error:
                if "runcation" not in str(error):  # tokenizers raises a bare Exception
                    raise
                cut = whole
            finally:
                cutter.truncation_side = usual
        kept = [len(ids) for ids in cut["input_ids"]]
        if max(kept) > limit:
            raise UserError(
                f"the text has {max(kept)} tokens, only {limit} fit, and truncation {truncation!r} "
                "cannot cut that much; shorten the other text or use another truncation"
            )
        return Tokens(cut, [n - k for n, k in zip(lengths, kept, strict=True)])

    def chunk(
        self,
        texts: list[str],
        pairs: list[str] | None = None,
        *,
        stride: int,
        limit: int,
        budget: Budget,
        **options: Any,
    ) -> Tokens:
        """Tokenize without padding; split long texts into rows that overlap by `stride` tokens.

        With `pairs` the second text is split, and every row has the whole first text. Rows have at
        most `limit` tokens. The encoding's `overflow_to_sample_mapping` maps rows to texts.

        Raises:
            TooLargeError: The rows would exceed the budget; checked before splitting.
        """
        options |= {"return_attention_mask": False, "verbose": False}
        whole = self.tokenizer(texts, pairs, truncation=False, **options)
        long = [encoding for encoding in whole.encodings if len(encoding.ids) > limit]
        tokens, more = sum(len(encoding.ids) for encoding in whole.encodings), 0
        for encoding in long:
            beyond = len(encoding.ids) - limit
            room = encoding.sequence_ids.count(0 if pairs is None else 1) - beyond
            rows = -(-beyond // max(1, room - stride))
            more, tokens = more + rows, tokens + rows * (limit - room + stride)
        budget.spend(len(texts) + more, "chunks of texts", tokens)
        if not long:
            whole["overflow_to_sample_mapping"] = list(range(len(texts)))
            return Tokens(whole)
        with self.cutter() as cutter:
            cut = cutter(
                texts,
                pairs,
                truncation="longest_first" if pairs is None else "only_second",
                max_length=limit,
                stride=stride,
                return_overflowing_tokens=True,
                **options,
            )
        return Tokens(cut)

    @contextlib.contextmanager
    def cutter(self) -> "Iterator[PreTrainedTokenizerBase]":
        """Lend a copy of the tokenizer whose state may change, to one thread at a time.

        Fast tokenizers store truncation as state. The original never changes, so any number of
        threads can use it. Only texts that need the copy wait.
        """
        with self._cutter_lock:
            if self._cutter is None:
                self._cutter = copy.deepcopy(self.tokenizer)
            yield self._cutter

    def rows_of(self, tokens: Tokens) -> list[Row]:
        """Build one row per sequence of `tokens`, with the inputs of the model.

        Raises:
            UserError: A sequence has no token.
        """
        names = [
            name for name in self.tokenizer.model_input_names
            if name != "attention_mask" and name in tokens.encoding
        ]  # fmt: skip
        if not all(tokens.encoding["input_ids"]):  # not every tokenizer adds special tokens
            raise UserError(NO_TOKEN)
        columns = [tokens.encoding[name] for name in names]
        rows = []
        for values in zip(*columns, strict=True):
            length = len(values[0])
            group = str(length) if self.batches_equal_lengths else ""
            rows.append(Row(dict(zip(names, values, strict=True)), length, group))
        return rows
