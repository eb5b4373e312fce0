"""Extractive question answering: the span of a context that answers a question.

transformers 5 dropped this pipeline; scores are as in version 4: the product of start and end
probabilities over the context (Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain
Questions").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.inference.parameters import Strict, fields_of, text_of
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Item
from trainyard.inference.row_limits import Budget
from trainyard.inference.tasks.text_classification import softmax

Count = Annotated[int, Ge(1)]

PART = 256
"""Number of start tokens whose spans are searched in one step, to limit memory use."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringParameters(Strict):
    """Parameters of a request."""

    top_k: Count = 1
    """Number of answers; with more than one, the answer is a list."""
    doc_stride: Annotated[int, Ge(0)] | None = None
    """Tokens by which the chunks of a long context overlap. Default: at most 128."""
    max_answer_len: Count = 15
    """Maximum number of tokens of an answer."""
    max_seq_len: Count | None = None
    """Maximum number of tokens of question and chunk together. Default: at most 384."""
    max_question_len: Count = 64
    """Maximum number of tokens of the question; longer questions are truncated."""
    handle_impossible_answer: bool = False
    """Allow the empty answer; its score is the probability of no answer in the text."""
    align_to_words: bool = True
    """Widen answers to whole words."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Chunk of a context in one row.

    Attributes:
        encoding: Maps tokens to characters.
        first: Position of the chunk's first token in the row.
        last: Position of the chunk's last token in the row.
        cls: Position of the token that stands for no answer; None if the row has no such token.
    """

    encoding: Any
    first: int
    last: int
    cls: int | None


class QuestionAnswering(Predictor):
    """Answers with score and position. `inputs`: `{"question": …, "context": …}` or a list of these."""

    task = "question-answering"
    auto_model = "AutoModelForQuestionAnswering"
    architectures = ("ForQuestionAnswering",)
    parameters = QuestionAnsweringParameters
    needs_offsets = True
    pair = ("question", "context")
    example: Mapping[str, Any] = {
        "inputs": {"question": "Where does Ada live?", "context": "Ada lives in London."},
        "parameters": {},
    }

    def encode(self, inputs: list[Any], parameters: QuestionAnsweringParameters) -> list[Item]:
        Budget(self.limits).spend(parameters.top_k * len(inputs), "answers")
        chunks = Budget(self.limits)
        return [self._item(value, parameters, chunks) for value in inputs]

    def _item(self, value: Any, parameters: QuestionAnsweringParameters, budget: Budget) -> Item:
        given = fields_of(value, ["question", "context"])
        question, context = (text_of(given[name], name) for name in ("question", "context"))
        for name, text in (("question", question), ("context", context)):
            if not text.strip():
                raise UserError(f"the {name} is empty; send a text")
        alone = self.tokenize(
            [question], limit=2**31, add_special_tokens=False, return_offsets_mapping=True
        ).encoding
        length = min(len(alone["input_ids"][0]), parameters.max_question_len)
        cut = len(alone["input_ids"][0]) - length
        if cut:
            question = question[: alone["offset_mapping"][0][length - 1][1]]
        limit = min(parameters.max_seq_len or 384, self.max_tokens or 2**31)
        room = limit - length - self.tokenizer.num_special_tokens_to_add(pair=True)
        stride = parameters.doc_stride
        if room < 1 or (stride is not None and stride >= room):
            raise UserError(
                f"next to the {length} tokens of the question there is room for {max(room, 0)} of the "
                f"context, less than doc_stride needs; send a smaller doc_stride, a smaller "
                f"max_question_len or a max_seq_len larger than {limit}"
            )
        stride = min(limit // 2, 128, room // 2) if stride is None else stride
        tokens = self.chunk([question], [context], stride=stride, limit=limit, budget=budget)
        rows = self.rows_of(tokens)
        chunks = [self._chunk(encoding) for encoding in tokens.encoding.encodings]
        found = [(row, chunk) for row, chunk in zip(rows, chunks, strict=True) if chunk is not None]
        if not found:
            raise UserError("the context has no token that the model knows; send a text")
        return Item([row for row, _ in found], cut, (context, [chunk for _, chunk in found]))

    def _chunk(self, encoding: Any) -> _Chunk | None:
        inside = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
        if not inside:
            return None
        ids = encoding.ids
        cls = self.tokenizer.cls_token_id
        return _Chunk(encoding, inside[0], inside[-1], ids.index(cls) if cls in ids else None)

    def results(self, rows: Any, outputs: Any) -> list[Any]:
        """Extract the start and end logits of each row, [2, tokens]."""
        start, end = (
            self.tokens_of(logits.float().cpu(), rows)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        return [np.stack([s.numpy(), e.numpy()]) for s, e in zip(start, end, strict=True)]

    def decode(
        self, item: Item, results: list[Any], parameters: QuestionAnsweringParameters
    ) -> Any:
        context, chunks = item.context
        # After widening to words, several spans of a chunk can be one answer: these are disjoint
        # events, so their probabilities add up. In overlapping chunks it is the same event.
        wanted = parameters.top_k * 2 + 10 if parameters.align_to_words else parameters.top_k
        best: dict[tuple[int, int], float] = {}
        nothing = 1.0
        for chunk, logits in zip(chunks, results, strict=True):
            starts, ends, scores, null = best_spans(
                logits, chunk.first, chunk.last, chunk.cls, wanted, parameters.max_answer_len
            )
            nothing = min(nothing, null)
            here: dict[tuple[int, int], float] = {}
            for start, end, score in zip(starts, ends, scores, strict=True):
                place = _characters(
                    chunk.encoding, int(start), int(end), words=parameters.align_to_words
                )
                here[place] = here.get(place, 0.0) + float(score)
            for place, score in here.items():
                best[place] = max(best.get(place, 0.0), score)
        answers = [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in best.items()
        ]
        if parameters.handle_impossible_answer:
            answers.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        answers.sort(key=lambda answer: -answer["score"])
        return answers[0] if parameters.top_k == 1 else answers[: parameters.top_k]


def best_spans(
    logits: NDArray[np.float32], first: int, last: int, cls: int | None, top_k: int, longest: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], float]:
    """Find the most probable spans among the tokens `first` to `last` of a row.

    Args:
        logits: Start and end logits, [2, tokens].
        first: Position of the first token of the context.
        last: Position of the last token of the context.
        cls: Position of the token that stands for no answer; None without such a token.
        top_k: Maximum number of spans.
        longest: Maximum number of tokens of a span.

    Returns:
        First tokens, last tokens and probabilities of the spans, best first, each [spans]; and the
        probability of no answer (0 without `cls`).
    """
    inside = np.arange(first, last + 1)
    places = inside if cls is None else np.append(inside, cls)
    probabilities = softmax(logits[:, places])
    null = 0.0 if cls is None else float(probabilities[0, -1] * probabilities[1, -1])
    start, end = probabilities[:, : len(inside)]
    # In parts: all spans of a context of thousands of tokens would take too much memory.
    parts = [
        _likeliest(*_spans(start, end, begin, longest), top_k)
        for begin in range(0, len(inside), PART)
    ]
    starts, ends, scores = map(np.concatenate, zip(*parts, strict=True))
    starts, ends, scores = _likeliest(starts, ends, scores, top_k)
    order = np.lexsort((ends, starts, -scores))
    return inside[starts[order]], inside[ends[order]], scores[order], null


def _spans(start: Any, end: Any, begin: int, longest: int) -> tuple[Any, Any, Any]:
    first = np.arange(begin, min(begin + PART, len(start)))
    last = np.arange(begin, min(begin + PART + longest, len(end)))
    offset = last[None, :] - first[:, None]
    i, j = np.nonzero((offset >= 0) & (offset < longest))
    starts, ends = first[i], last[j]
    return starts, ends, start[starts] * end[ends]


def _likeliest(starts: Any, ends: Any, scores: Any, top_k: int) -> tuple[Any, Any, Any]:
    if len(scores) <= top_k:
        return starts, ends, scores
    chosen = np.argpartition(-scores, top_k - 1)[:top_k]
    return starts[chosen], ends[chosen], scores[chosen]


def _characters(encoding: Any, start: int, end: int, *, words: bool) -> tuple[int, int]:
    """Return the character range of a token span, end excluded; `words` widens to whole words."""
    if words:
        first, last = encoding.token_to_word(start), encoding.token_to_word(end)
        if first is not None and last is not None:
            low = encoding.word_to_chars(first, 1)
            high = encoding.word_to_chars(last, 1)
            if low is not None and high is not None:
                return low[0], high[1]
    return encoding.offsets[start][0], encoding.offsets[end][1]
