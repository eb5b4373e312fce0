"""Text generation against transformers' own generate and pipeline, and what a server needs of it."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import gpt2

from trainyard.errors import UserError
from trainyard.inference.tasks.text_generation import TextGeneration

PROMPTS = ["in the bab", "a", "Grüße, 火车 in the", "the the the the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> TextGeneration:
    return TextGeneration.load(str(folder))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    from transformers import pipeline

    return pipeline("text-generation", model=str(folder))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
    ],
)
def test_texts_equal_the_pipeline(
    predictor: TextGeneration, oracle: Any, options: dict[str, Any]
) -> None:
    expected = oracle(PROMPTS, max_new_tokens=20, do_sample=False, **options)
    assert predictor(PROMPTS, max_new_tokens=20, return_full_text=True, **options) == expected
    ours = predictor(PROMPTS[0], max_new_tokens=20, **options)
    assert [PROMPTS[0] + answer["generated_text"] for answer in ours] == [
        answer["generated_text"] for answer in expected[0]
    ]


def test_details_tell_the_models_own_probabilities(predictor: TextGeneration) -> None:
    import torch

    (answer,) = predictor(PROMPTS[2], max_new_tokens=15, details=True)
    details = answer["details"]
    prompt = predictor.tokenizer(PROMPTS[2])["input_ids"]
    tokens = [token["id"] for token in details["tokens"]]
    with torch.no_grad():
        logits = predictor.model(torch.tensor([prompt + tokens])).logits[0]
    expected = logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(tokens) - 1), tokens]
    ours = [token["logprob"] for token in details["tokens"]]
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert details["generated_tokens"] == len(tokens)
    assert details["input_length"] == len(prompt)
    assert details["finish_reason"] == ("eos_token" if tokens[-1] == 2 else "length")
    json.dumps(answer)


@given(
    prompts=st.lists(
        st.tuples(st.sampled_from(["a", "the", "bab in ", "火"]), st.integers(1, 12)),
        min_size=2, max_size=5,
    ),
    sample=st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_a_text_does_not_depend_on_its_batch(
    predictor: TextGeneration, prompts: list[tuple[str, int]], sample: bool
) -> None:
    """Requests with seeds, lengths and stop texts of their own, greedy or drawn, in one batch."""
    requests = [
        predictor.preprocess(
            text * times,
            {"max_new_tokens": 4 + times, "do_sample": sample, "seed": i, "stop": ["b", "火"][: i % 3]}
            | ({"temperature": 0.9, "top_k": 30, "top_p": 0.95} if sample else {}),
        )
        for i, (text, times) in enumerate(prompts)
    ]  # fmt: skip
    rows = [row for request in requests for row in request.rows]
    assert len({row.group for row in rows}) == 1
    together = predictor.forward(rows)
    for row, [result] in zip(rows, together, strict=True):
        [alone] = predictor.forward([row])[0]
        assert (result.tokens, result.finish_reason) == (alone.tokens, alone.finish_reason)


def test_rows_that_fit_only_alone_do_not_push_each_other_out(predictor: TextGeneration) -> None:
    """A finished row counts on with its neighbors: 60 tokens and 60 more are too many positions."""
    requests = [
        predictor.preprocess("a" * 60, {"max_new_tokens": 4}),
        predictor.preprocess("a", {"max_new_tokens": 60}),
        predictor.preprocess("a" * 30, {"max_new_tokens": 20}),
    ]
    rows = [row for request in requests for row in request.rows]
    together = predictor.forward(rows)
    assert len(together[1][0].tokens) == 60
    for row, [result] in zip(rows, together, strict=True):
        assert result.tokens == predictor.forward([row])[0][0].tokens


def test_draws_have_the_models_distribution(predictor: TextGeneration) -> None:
    """2,000 first tokens against the probabilities that transformers' processors leave."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

    options = {"temperature": 3.0, "top_k": 6}
    ids = torch.tensor([predictor.tokenizer("the")["input_ids"]])
    with torch.no_grad():
        logits = predictor.model(ids).logits[:, -1]
    processors = LogitsProcessorList([TemperatureLogitsWarper(3.0), TopKLogitsWarper(6)])
    probabilities = processors(ids, logits).softmax(-1)[0].numpy()
    requests = [
        predictor.preprocess(
            "the", {"max_new_tokens": 1, "seed": seed, "num_return_sequences": 20, **options}
        )
        for seed in range(100)
    ]
    found = predictor.forward_all([row for request in requests for row in request.rows])
    counts = Counter(generated.tokens[0] for [generated] in found)
    assert set(counts) <= set(np.flatnonzero(probabilities))
    seen = np.array([counts[int(token)] for token in np.flatnonzero(probabilities)])
    expected = probabilities[probabilities > 0] * 2000
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001; the seeds are fixed


def test_a_seed_repeats_a_text_and_its_siblings_differ(predictor: TextGeneration) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 2.0, "details": True}
    first = predictor("the", seed=7, num_return_sequences=3, **options)
    assert first == predictor("the", seed=7, num_return_sequences=3, **options)
    assert len({answer["generated_text"] for answer in first}) == 3
    free = predictor("the", **options)[0]
    again = predictor("the", seed=free["details"]["seed"], **options)[0]
    assert free["generated_text"] == again["generated_text"]
    assert free["generated_text"] != predictor("the", **options)[0]["generated_text"]


def test_likeliest_only_is_greedy(predictor: TextGeneration) -> None:
    greedy = predictor(PROMPTS, max_new_tokens=20)
    assert predictor(PROMPTS, max_new_tokens=20, top_k=1) == greedy
    assert predictor(PROMPTS, max_new_tokens=20, top_p=1e-6) == greedy


def test_generation_ends_at_a_stop_text(predictor: TextGeneration) -> None:
    length = {"max_new_tokens": 40, "min_new_tokens": 40}
    options: dict[str, Any] = {**length, "temperature": 1.5, "seed": 1}
    (whole,) = predictor(PROMPTS[0], **options)
    text = whole["generated_text"]
    found = re.search(r"[!-~] ?[!-~]", text[3:])
    assert found, text
    stops = ["never there", found[0]]
    (answer,) = predictor(PROMPTS[0], stop=stops, details=True, **options)
    end = text.index(found[0]) + len(found[0])
    assert answer["generated_text"].startswith(text[:end])
    assert len(answer["generated_text"]) < len(text)
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert found[0] not in "".join(token["text"] for token in answer["details"]["tokens"][:-1])


def test_generation_ends_at_the_end_of_sequence(tmp_path: Path) -> None:
    """A model whose likeliest token is the end."""
    import torch
    from transformers import GPT2LMHeadModel

    folder = gpt2(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(folder, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.clone())
        model.transformer.ln_f.bias.copy_(model.lm_head.weight[2] * 50)
    model.save_pretrained(folder)
    (answer,) = TextGeneration.load(str(folder))("the", details=True)
    assert answer["details"]["finish_reason"] == "eos_token"
    assert answer["details"]["tokens"][-1]["special"]
    assert answer["generated_text"] == ""


def test_frequent_tokens_become_rare(predictor: TextGeneration) -> None:
    def most(penalty: float) -> int:
        options: dict[str, Any] = {"max_new_tokens": 40, "details": True}
        (answer,) = predictor("a", frequency_penalty=penalty, **options)
        return max(Counter(token["id"] for token in answer["details"]["tokens"]).values())

    assert most(-2) > most(2)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}])
def test_streamed_tokens_are_the_text(predictor: TextGeneration, options: dict[str, Any]) -> None:
    """Several streams and a whole answer share one batch; characters of several bytes, too."""
    common = {"max_new_tokens": 25, **options}
    events: list[list[dict[str, Any]]] = [[] for _ in PROMPTS]
    requests = [predictor.preprocess(prompt, common) for prompt in PROMPTS]
    for request, heard in zip(requests[1:], events[1:], strict=True):
        predictor.stream(request, heard.append)
    results = predictor.forward([row for request in requests for row in request.rows])
    assert not events[0]
    for request, heard, result in list(zip(requests, events, results, strict=True))[1:]:
        (answer,) = predictor.postprocess(request, [result])
        assert "".join(event["token"]["text"] for event in heard) == answer["generated_text"]
        assert [event["index"] for event in heard] == list(range(1, len(heard) + 1))
        assert heard[-1]["generated_text"] == answer["generated_text"]
        assert heard[-1]["details"]["finish_reason"] in ("length", "eos_token")
        assert not any(event["generated_text"] or event["details"] for event in heard[:-1])
        assert all(event["token"]["logprob"] <= 0 for event in heard)
    told = [list(heard) for heard in events]
    predictor.forward([row for request in requests for row in request.rows])  # memory had run out
    assert [heard[len(heard) // 2 :] for heard in events] == told


def test_a_cancelled_row_ends_and_its_neighbors_do_not(predictor: TextGeneration) -> None:
    options = {"max_new_tokens": 25}
    gone, other = (predictor.preprocess(prompt, options) for prompt in PROMPTS[:2])
    heard: list[Any] = []
    predictor.stream(gone, heard.append)
    predictor.stop_when(gone, lambda: len(heard) >= 5)
    [[cut], [whole]] = predictor.forward([*gone.rows, *other.rows])
    assert (len(cut.tokens), cut.finish_reason) == (6, "cancelled")
    assert len(whole.tokens) == 25


def test_long_prompts_are_refused_or_cut_at_their_beginning(predictor: TextGeneration) -> None:
    long = "a" * 70
    with pytest.raises(UserError, match="the prompt has 70 tokens, and with max_new_tokens 1 more"):
        predictor(long)
    with pytest.raises(
        UserError, match="has 50 tokens, and with max_new_tokens 20 more than the 64"
    ):
        predictor("a" * 50, max_new_tokens=20)
    request = predictor.preprocess(long + "bab", {"truncate": 10, "max_new_tokens": 5})
    assert request.truncated == [61]
    ids = predictor.tokenizer(long + "bab")["input_ids"]
    assert request.rows[0].inputs["input_ids"] == ids[-10:]
    assert predictor.preprocess("a" * 60).rows[0].wanted.max_new_tokens == 4


def test_the_empty_prompt_begins_anew(predictor: TextGeneration) -> None:
    assert predictor("", max_new_tokens=5)[0]["generated_text"]


def test_a_models_own_defaults_count_and_its_tricks_do_not(tmp_path: Path) -> None:
    folder = gpt2(tmp_path, max_new_tokens=7, do_sample=True, temperature=0.7)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {
        "custom_generate": "evil/repo",
        "penalty_alpha": 0.6,
        "cache_implementation": "paged",
    }
    (folder / "generation_config.json").write_text(json.dumps(config))
    predictor = TextGeneration.load(str(folder))
    (answer,) = predictor("the", details=True)
    assert answer["details"]["generated_tokens"] <= 7
    assert answer["details"]["seed"] is not None
    (greedy,) = predictor("the", do_sample=False, details=True)
    assert greedy["details"]["seed"] is None


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"num_beams": 2, "do_sample": True}, "num_beams above 1 and do_sample exclude each other"),
        ({"num_beams": 2, "num_return_sequences": 3}, "is 3, but num_beams only 2"),
        (
            {"num_return_sequences": 2, "do_sample": False},
            "do_sample is false, so all would be equal",
        ),
        ({"max_length": 1}, "the prompt alone has"),
        ({"num_beams": 2, "stop": ["a"]}, "stop and details need num_beams 1"),
        ({"stop": [""]}, "parameters.stop is ''"),
        ({"temperature": 0}, "parameters.temperature is 0: input should be greater than 0"),
        (
            {"num_beams": 2, "length_penalty": 1e308},  # a length to this power is no float
            r"parameters.length_penalty is 1e\+308: input should be less than or equal to 10",
        ),
        ({"num_beams": 2, "length_penalty": -11}, "should be greater than or equal to -10"),
        (
            {"repetition_penalty": 1e-300, "details": True},  # its log-probabilities are infinite
            "parameters.repetition_penalty is 1e-300: input should be greater than or equal to 0.01",
        ),
        ({"repetition_penalty": 101}, "should be less than or equal to 100"),
        ({"watermark": True}, "parameters.watermark is not supported here; leave it out"),
        ({"grammar": {"type": "json"}}, "parameters.grammar is not supported here"),
        ({"custom_generate": "evil/repo"}, "custom_generate is not a parameter of text-generation"),
    ],
)
def test_a_bad_request_gets_a_sentence(
    predictor: TextGeneration, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        predictor.preprocess("the", parameters)


def test_a_stream_is_of_one_text(predictor: TextGeneration) -> None:
    for request in (
        predictor.preprocess(["a", "b"]),
        predictor.preprocess("a", {"num_beams": 2}),
        predictor.preprocess("a", {"num_return_sequences": 2, "do_sample": True}),
    ):
        with pytest.raises(UserError, match="only one answer to one text can be streamed, without"):
            predictor.stream(request, print)
