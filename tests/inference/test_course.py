"""The pipeline examples of the Hugging Face course, in Python and over HTTP.

The models are tiny and random; texts, parameters and shapes of answers are the course's. The real
client sends what it can; the rest is plain JSON, as other programs send it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from huggingface_hub import InferenceClient
from serving.test_contract import close, plain
from support.serving_locally import LocalModels, load, serving
from support.small_models import marian

from trainyard.errors import UserError

WAITING = "I've been waiting for a HuggingFace course my whole life."
HATE = "I hate this so much!"
COURSE = "This is a course about the Transformers library"
PROMPT = "In this course"
NAME = "My name is Sylvain and I work at Hugging Face in Brooklyn."
DECLINE = "America has changed dramatically during recent years."
FRENCH = "Ce cours est produit par Hugging Face."
LABELS = ["education", "politics", "business"]


@dataclass(frozen=True)
class Example:
    """A line of the course: the model's task, and how each way of asking spells it."""

    task: str
    inputs: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    method: str | None = None
    """Method of the client; None where it cannot send these parameters."""
    arguments: dict[str, Any] = field(default_factory=dict)
    listed: bool = False
    """The client reads the first entry of the answer."""


SHORT = {"min_length": 5, "max_length": 12}
EXAMPLES = {
    "sentiment of a text": Example(
        "text-classification", WAITING, {}, "text_classification", {"text": WAITING}, listed=True
    ),
    "sentiment of a list": Example("text-classification", [WAITING, HATE]),
    "zero-shot": Example(
        "zero-shot-classification", COURSE, {"candidate_labels": LABELS},
        "zero_shot_classification", {"text": COURSE, "candidate_labels": LABELS},
    ),
    "text generation": Example(
        "text-generation", PROMPT, {"max_length": 30, "num_return_sequences": 2, "seed": 0}
    ),
    "fill-mask": Example(
        "fill-mask", "This course will teach you all about [MASK] models.", {"top_k": 2},
        "fill_mask", {"text": "This course will teach you all about [MASK] models.", "top_k": 2},
    ),
    "named entities": Example(
        "token-classification", NAME, {"grouped_entities": True, "ignore_labels": []}
    ),
    "question answering": Example(
        "question-answering", {"question": "Where do I work?", "context": NAME}, {},
        "question_answering", {"question": "Where do I work?", "context": NAME},
    ),
    "summarization": Example(
        "summarization", DECLINE, SHORT,
        "summarization", {"text": DECLINE, "generate_parameters": SHORT}, listed=True,
    ),
    "translation": Example(
        "french-to-english", FRENCH, {}, "translation", {"text": FRENCH}, listed=True
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(
    every_host: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    translator = load(marian(tmp_path_factory.mktemp("opus-mt-fr-en")), task="translation")
    yield {**every_host, "french-to-english": translator}
    translator.close()


@pytest.fixture(scope="module")
def url(models: dict[str, Any]) -> Iterator[str]:
    with serving(LocalModels(models)) as url:
        yield f"{url}/models"


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))
def test_an_example_has_one_answer_in_python_and_over_http(
    url: str, models: dict[str, Any], example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    answer = models[example.task].predictor(example.inputs, **example.parameters)
    body = json.dumps({"inputs": example.inputs, "parameters": example.parameters}).encode()
    target = f"{url}/{example.task}"
    with urlopen(Request(target, body, {"content-type": "application/json"})) as response:
        close(json.load(response), answer)
    if example.method is not None:
        found = getattr(InferenceClient(target), example.method)(**example.arguments)
        close(plain(found), answer[0] if example.listed else answer)


def test_sentiment_has_a_list_of_labels_for_each_text(models: dict[str, Any]) -> None:
    one, other = models["text-classification"].predictor([WAITING, HATE])
    assert len(one) == len(other) == 3
    assert one != other


def test_zero_shot_scores_the_three_labels(models: dict[str, Any]) -> None:
    answer = models["zero-shot-classification"].predictor(COURSE, candidate_labels=LABELS)
    assert {found["label"] for found in answer} == set(LABELS)
    assert sum(found["score"] for found in answer) == pytest.approx(1)


@pytest.mark.parametrize("max_length", [30, 40])
def test_max_length_counts_the_prompt(models: dict[str, Any], max_length: int) -> None:
    """As in transformers: prompt and answer together have at most so many tokens."""
    predictor = models["text-generation"].predictor
    prompt = len(predictor.tokenizer(PROMPT)["input_ids"])
    options = {"max_length": max_length, "num_return_sequences": 2, "details": True, "seed": 0}
    answers = predictor(PROMPT, **options)
    assert len({answer["generated_text"] for answer in answers}) == 2
    lengths = [len(answer["details"]["tokens"]) for answer in answers]
    ends = [answer["details"]["finish_reason"] for answer in answers]
    assert "length" in ends
    for length, end in zip(lengths, ends, strict=True):
        assert length == max_length - prompt if end == "length" else length <= max_length - prompt
    (greedy,) = predictor(PROMPT, max_length=max_length, do_sample=False)
    assert greedy["generated_text"] == _continued(predictor, max_length=max_length)


def test_max_new_tokens_has_precedence_over_max_length(models: dict[str, Any]) -> None:
    predictor = models["text-generation"].predictor
    (answer,) = predictor(PROMPT, max_length=30, max_new_tokens=2, do_sample=False)
    assert answer["generated_text"] == _continued(predictor, max_length=30, max_new_tokens=2)
    with pytest.raises(UserError, match="send a larger one, or max_new_tokens"):
        predictor(PROMPT, max_length=3)
    assert predictor(PROMPT, max_length=3, max_new_tokens=2)


def _continued(predictor: Any, **options: Any) -> str:
    """transformers' own continuation."""
    tokens = predictor.tokenizer(PROMPT, return_tensors="pt")
    found = predictor.model.generate(**tokens, do_sample=False, **options)[0]
    new = found[tokens["input_ids"].shape[1] :]
    return str(predictor.tokenizer.decode(new, skip_special_tokens=True))


def test_grouped_entities_is_the_simple_strategy(models: dict[str, Any]) -> None:
    entities = partial(models["token-classification"].predictor, NAME, ignore_labels=[])
    assert entities(grouped_entities=True) == entities(aggregation_strategy="simple")
    assert entities(grouped_entities=True)[0].keys() >= {"entity_group", "word", "start", "end"}
    assert entities(grouped_entities=False) == entities() != entities(grouped_entities=True)
    first = entities(aggregation_strategy="first")
    assert entities(grouped_entities=True, aggregation_strategy="first") == first


def test_a_summary_has_its_lengths(models: dict[str, Any]) -> None:
    predictor = models["summarization"].predictor
    (answer,) = predictor(DECLINE, **SHORT)
    tokens = predictor.tokenizer(DECLINE, return_tensors="pt")
    (found,) = predictor.model.generate(**tokens, do_sample=False, **SHORT)
    assert 5 <= len(found) <= 12
    assert answer["summary_text"] == predictor.tokenizer.decode(found, skip_special_tokens=True)


def test_marian_translates_as_transformers_does(models: dict[str, Any]) -> None:
    import transformers

    host = models["french-to-english"]
    folder = Path(host.predictor.tokenizer.name_or_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    texts = [FRENCH, "Le train part à midi. " * 40]  # the second one is cut to 64 tokens
    for text, answer in zip(texts, host.predictor(texts, truncation=True), strict=True):
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        (found,) = model.generate(**tokens)
        assert answer["translation_text"] == tokenizer.decode(found, skip_special_tokens=True)
        assert answer["translation_text"]
