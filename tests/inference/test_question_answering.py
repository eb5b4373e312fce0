"""Question answering against transformers' span decoding and against every span there is."""

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import bert
from support.tiny import WORDS

from trainyard.errors import UserError
from trainyard.inference.tasks.question_answering import QuestionAnswering, best_spans

CONTEXT = "Ada met bab in London, then fed gig at noon. Unseen words came with lom nab."
LONG = " ".join(f"{word} and" for word in WORDS)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswering:
    folder = bert(tmp_path_factory.mktemp("qa"), "ForQuestionAnswering")
    return QuestionAnswering.load(str(folder))


@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(3, 30),
    question=st.integers(1, 10),
    top_k=st.integers(1, 12),
    longest=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_spans_are_those_of_transformers(
    seed: int, tokens: int, question: int, top_k: int, longest: int
) -> None:
    """Its own decoder is still there, for documents."""
    from transformers.pipelines.document_question_answering import select_starts_ends

    first = question + 1
    logits = np.random.default_rng(seed).normal(0, 3, (2, first + tokens + 1)).astype(np.float32)
    p_mask = np.ones((1, logits.shape[1]))
    p_mask[0, 0] = p_mask[0, first : first + tokens] = 0
    starts, ends, scores, null = select_starts_ends(
        logits[:1], logits[1:], p_mask.astype(int), None, 1_000_000, top_k, True, longest
    )  # fmt: skip
    ours = best_spans(logits, first, first + tokens - 1, 0, top_k, longest)
    real = scores > 1e-30  # it fills up with impossible spans where there are too few
    assert ours[0][: real.sum()].tolist() == starts[real].tolist()
    assert ours[1][: real.sum()].tolist() == ends[real].tolist()
    np.testing.assert_allclose(ours[2][: real.sum()], scores[real], rtol=1e-4)
    assert ours[3] == pytest.approx(null, rel=1e-4)
    possible = sum(min(longest, tokens - i) for i in range(tokens))
    assert len(ours[0]) == min(top_k, possible)


def logits_of(predictor: QuestionAnswering, question: str, context: str) -> tuple[Any, Any]:
    """transformers alone: the encoding and both logits."""
    import torch

    encoding = predictor.tokenizer(question, context, return_tensors="pt")
    with torch.no_grad():
        outputs = predictor.model(**encoding)
    return encoding, torch.stack([outputs.start_logits[0], outputs.end_logits[0]]).numpy()


@pytest.mark.parametrize("question", ["Where is bab?", "fed gig"])
@pytest.mark.parametrize("longest", [1, 4, 15])
def test_answers_equal_a_search_over_all_spans(
    predictor: QuestionAnswering, question: str, longest: int
) -> None:
    encoding, logits = logits_of(predictor, question, CONTEXT)
    inside = [i for i, s in enumerate(encoding.sequence_ids()) if s == 1]
    places = [0, *inside]
    exp = np.exp(logits[:, places].astype(float))
    start, end = exp / exp.sum(axis=1, keepdims=True)
    best = max(
        ((i, j) for i in range(1, len(places)) for j in range(i, min(i + longest, len(places)))),
        key=lambda span: start[span[0]] * end[span[1]],
    )
    request = {"question": question, "context": CONTEXT}
    answer = predictor(request, max_answer_len=longest, align_to_words=False)
    assert answer["score"] == pytest.approx(start[best[0]] * end[best[1]], abs=1e-5)
    assert answer["start"] == encoding.token_to_chars(places[best[0]]).start
    assert answer["end"] == encoding.token_to_chars(places[best[1]]).end
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]


def test_answers_are_widened_to_words_and_their_probabilities_added(
    predictor: QuestionAnswering,
) -> None:
    encoding, logits = logits_of(predictor, "Where?", CONTEXT)
    inside = [i for i, sequence in enumerate(encoding.sequence_ids()) if sequence == 1]
    expected: dict[tuple[int, int], float] = {}
    spans = best_spans(logits, inside[0], inside[-1], 0, 10**6, 3)
    for start, end, score in zip(*spans[:3], strict=True):
        first, last = (encoding.token_to_word(0, int(i)) for i in (start, end))
        place = (
            encoding.word_to_chars(0, first, sequence_index=1).start,
            encoding.word_to_chars(0, last, sequence_index=1).end,
        )
        expected[place] = expected.get(place, 0) + score
    request = {"question": "Where?", "context": CONTEXT}
    answers = predictor(request, top_k=10_000, max_answer_len=3)
    assert {(a["start"], a["end"]): a["score"] for a in answers} == pytest.approx(
        expected, abs=1e-5
    )
    assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
    words = {(word.start(), word.end()) for word in re.finditer(r"\w+|[^\w\s]", CONTEXT)}
    assert all(a["start"] in {start for start, _ in words} for a in answers)
    assert len(expected) < len(spans[0])


def test_long_contexts_are_searched_to_their_end(predictor: QuestionAnswering) -> None:
    request = {"question": "Where is bab?", "context": LONG}
    prepared = predictor.preprocess(request, {"top_k": 50})
    (item,) = prepared.items
    _, chunks = item.context
    assert len(chunks) > 5
    assert all(row.length <= 64 for row in prepared.rows)
    covered = {
        i for chunk in chunks for start, end in chunk.encoding.offsets[chunk.first : chunk.last + 1]
        for i in range(start, end)
    }  # fmt: skip
    assert covered == {i for i, character in enumerate(LONG) if character != " "}
    answers = predictor(request, top_k=50, align_to_words=False)
    assert len({(a["start"], a["end"]) for a in answers}) == len(answers)
    best: dict[tuple[int, int], float] = {}
    for chunk, result in zip(chunks, predictor.forward_all(prepared.rows), strict=True):
        starts, ends, scores, _ = best_spans(result, chunk.first, chunk.last, 0, 50, 15)
        for start, end, score in zip(starts, ends, scores, strict=True):
            place = (chunk.encoding.offsets[start][0], chunk.encoding.offsets[end][1])
            best[place] = max(best.get(place, 0), float(score))  # chunks overlap: the same event
    top = sorted(best.items(), key=lambda found: -found[1])[:50]
    assert [a["score"] for a in answers] == pytest.approx([score for _, score in top], abs=1e-5)
    assert max(a["end"] for a in answers) > len(LONG) / 2
    assert all(a["answer"] == LONG[a["start"] : a["end"]] and a["score"] <= 1 for a in answers)


def test_the_empty_answer_competes(predictor: QuestionAnswering) -> None:
    encoding, logits = logits_of(predictor, "Where is bab?", CONTEXT)
    inside = [i for i, sequence in enumerate(encoding.sequence_ids()) if sequence == 1]
    request = {"question": "Where is bab?", "context": CONTEXT}
    answers = predictor(request, top_k=10_000, handle_impossible_answer=True)
    (empty,) = [a for a in answers if a["answer"] == ""]
    *_, null = best_spans(logits, inside[0], inside[-1], 0, 1, 15)
    assert empty == {"score": pytest.approx(null, abs=1e-5), "start": 0, "end": 0, "answer": ""}
    assert not [a for a in predictor(request, top_k=10_000) if a["answer"] == ""]


def test_lists_and_neighbors(predictor: QuestionAnswering) -> None:
    requests = [
        {"question": "Where is bab?", "context": LONG},
        {"question": "fed", "context": "gig lom"},
    ]
    together = predictor(requests)
    assert together[1]["answer"]
    for alone, answer in zip(map(predictor, requests), together, strict=True):
        assert alone["answer"] == answer["answer"]
        assert alone["score"] == pytest.approx(answer["score"], abs=1e-5)
    assert isinstance(predictor(requests[1], top_k=2), list)


def test_long_questions_are_cut_and_counted(predictor: QuestionAnswering) -> None:
    request = {"question": "bab " * 40, "context": "gig lom"}
    prepared = predictor.preprocess(request, {"max_question_len": 10})
    assert prepared.truncated == [30]
    assert prepared.rows[0].length == 10 + 2 + 3


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ("bab", {}, "inputs must be an object with question and context, not str"),
        ({"question": "a"}, {}, "but it lacks context"),
        ({"question": "a", "context": " "}, {}, "the context is empty; send a text"),
        ({"question": "", "context": "a"}, {}, "the question is empty; send a text"),
        ({"question": "a", "context": 3}, {}, "context must be a text, not 3"),
        ({"question": "bab " * 61, "context": "a"}, {}, "room for 0 of the context"),
        ({"question": "a", "context": "b"}, {"doc_stride": 60}, "room for 60 of the context, less"),
        ({"question": "a", "context": "b"}, {"max_seq_len": 3}, "max_seq_len larger than 3"),
    ],
)
def test_a_bad_request_gets_a_sentence(
    predictor: QuestionAnswering, inputs: Any, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        predictor.preprocess(inputs, parameters)


def test_a_long_context_is_looked_through_in_little_memory() -> None:
    """There are millions of spans in a context of thousands of tokens."""
    logits = np.random.default_rng(0).normal(0, 3, (2, 4000)).astype(np.float32)
    tracemalloc.start()
    starts, ends, scores, _ = best_spans(logits, 1, 3999, 0, 30, 4000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6
    start, end = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores.tolist() == pytest.approx((start[starts] * end[ends]).tolist(), rel=1e-4)
    every = np.triu(np.outer(start, end)[1:, 1:])
    assert scores.tolist() == pytest.approx(np.sort(every.ravel())[:-31:-1].tolist(), rel=1e-4)
