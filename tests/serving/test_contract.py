"""Every task through the real, unmodified client, sync and async, against the predictor itself."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, OverloadedError, ValidationError
from support.serving_locally import LocalModels, serving

from trainyard.inference.registry import PREDICTORS
from trainyard.serving.errors import RequestError
from trainyard.serving.replica.host import Host

FUZZ = int(os.environ.get("TRAINYARD_FUZZ", "0")) // 100
"""Requests of each operation, when there is time for every task and more than a few."""

TEXT = "bana cola fele"
QUESTION = {"question": "bana", "context": "cola fele giga loda muba"}


def plain(value: Any) -> Any:
    """The client's dataclasses, arrays and lists as plain values; fields that are unset left out."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def close(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, item in theirs.items():
            close(ours[key], item)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-5)
    else:
        assert ours == theirs


def _known_to_the_client(details: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in details.items() if key != "input_length"}


@dataclass(frozen=True)
class Call:
    """A method of the client, and the part of the server's answer that it gives back."""

    task: str
    method: str
    arguments: dict[str, Any]
    inputs: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    pick: Callable[[Any], Any] = lambda answer: answer


CALLS = [
    Call("text-classification", "text_classification", {"text": TEXT}, TEXT, pick=lambda a: a[0]),
    Call(
        "text-classification", "text_classification",
        {"text": TEXT, "top_k": 1, "function_to_apply": "sigmoid"},
        TEXT, {"top_k": 1, "function_to_apply": "sigmoid"}, lambda a: a[0],
    ),
    Call(
        "zero-shot-classification", "zero_shot_classification",
        {"text": TEXT, "candidate_labels": ["dogs", "cats"], "multi_label": True,
         "hypothesis_template": "about {}"},
        TEXT, {"candidate_labels": ["dogs", "cats"], "multi_label": True,
               "hypothesis_template": "about {}"},
    ),
    Call(
        "token-classification", "token_classification",
        {"text": TEXT, "aggregation_strategy": "simple"}, TEXT, {"aggregation_strategy": "simple"},
    ),
    Call("question-answering", "question_answering", QUESTION, QUESTION),
    Call(
        "question-answering", "question_answering", {**QUESTION, "top_k": 3}, QUESTION, {"top_k": 3}
    ),
    Call("fill-mask", "fill_mask", {"text": "bana [MASK]", "top_k": 2}, "bana [MASK]", {"top_k": 2}),
    Call(
        "fill-mask", "fill_mask", {"text": "bana [MASK]", "targets": ["cola", "fele"]},
        "bana [MASK]", {"targets": ["cola", "fele"]},
    ),
    Call("feature-extraction", "feature_extraction", {"text": TEXT}, TEXT),
    Call(
        "feature-extraction", "feature_extraction", {"text": TEXT, "normalize": True}, TEXT,
        {"normalize": True},
    ),
    Call(
        "sentence-similarity", "sentence_similarity",
        {"sentence": TEXT, "other_sentences": ["cola", "giga loda"]},
        {"source_sentence": TEXT, "sentences": ["cola", "giga loda"]},
    ),
    Call("summarization", "summarization", {"text": TEXT}, TEXT, pick=lambda a: a[0]),
    Call("translation", "translation", {"text": TEXT}, TEXT, pick=lambda a: a[0]),
    Call(
        "text-generation", "text_generation", {"prompt": TEXT, "max_new_tokens": 6}, TEXT,
        {"max_new_tokens": 6}, lambda a: a[0]["generated_text"],
    ),
    Call(
        "text-generation", "text_generation",
        {"prompt": TEXT, "max_new_tokens": 6, "details": True, "seed": 3, "do_sample": True,
         "stop": ["x"]},
        TEXT, {"max_new_tokens": 6, "details": True, "seed": 3, "do_sample": True, "stop": ["x"]},
        lambda a: {**a[0], "details": _known_to_the_client(a[0]["details"])},
    ),
]  # fmt: skip


LISTS_OF_ONE = {
    "text-classification", "summarization", "translation", "text2text-generation",
}  # fmt: skip
"""Tasks whose answer to a single input is a list, too: the client reads its first entry."""


@pytest.fixture(scope="module")
def models(every_host: dict[str, Host]) -> LocalModels:
    assert every_host.keys() == PREDICTORS.keys()
    return LocalModels(every_host)


@pytest.fixture(scope="module")
def url(models: LocalModels) -> Iterator[str]:
    with serving(models) as url:
        yield f"{url}/models"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses any request while HF_HUB_OFFLINE is set, also to this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.task}-{len(call.parameters)}")
def test_the_client_reads_what_the_predictor_says(
    url: str, models: LocalModels, call: Call
) -> None:
    target = f"{url}/{call.task}"
    found = getattr(InferenceClient(target), call.method)(**call.arguments)
    expected = models.hosts[call.task].predictor(call.inputs, **call.parameters)
    close(plain(found), plain(call.pick(json.loads(json.dumps(expected)))))
    again = asyncio.run(getattr(AsyncInferenceClient(target), call.method)(**call.arguments))
    close(plain(again), plain(found))


@pytest.mark.parametrize("task", sorted(PREDICTORS))
def test_a_list_gives_an_answer_per_item(url: str, models: LocalModels, task: str) -> None:
    del url
    host = models.hosts[task]
    example = host.predictor.example
    one = {
        "inputs": example["inputs"],
        "parameters": {**example.get("parameters", {}), **_fixed(task)},
    }
    many = {**one, "inputs": [example["inputs"]] * 3}
    single, several = (
        json.loads(asyncio.run(host.answer(json.dumps(body).encode(), 30)).body)
        for body in (one, many)
    )
    assert len(several) == 3
    for answer in several:
        close(answer, single[0] if task in LISTS_OF_ONE else single)


def _fixed(task: str) -> dict[str, Any]:
    return {"seed": 1} if task == "text-generation" else {}


def test_tokens_come_one_by_one_and_make_up_the_text(url: str) -> None:
    client = InferenceClient(f"{url}/text-generation")
    whole = client.text_generation(TEXT, max_new_tokens=6)
    assert "".join(client.text_generation(TEXT, max_new_tokens=6, stream=True)) == whole
    events = list(client.text_generation(TEXT, max_new_tokens=6, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert events[-1].generated_text == whole
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == len(events)

    async def stream() -> str:
        async with AsyncInferenceClient(f"{url}/text-generation") as client:
            tokens = await client.text_generation(TEXT, max_new_tokens=6, stream=True)
            return "".join([token async for token in tokens])

    assert asyncio.run(stream()) == whole


def test_the_clients_own_errors(
    url: str, models: LocalModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = InferenceClient(f"{url}/text-generation")
    with pytest.raises(ValidationError, match="max_new_tokens"):
        client.text_generation(TEXT, max_new_tokens=10_000)
    with pytest.raises(ValidationError, match="is not supported here"):
        client.text_generation(TEXT, watermark=True)
    with pytest.raises((ValidationError, HfHubHTTPError), match="does not support streaming"):
        list(InferenceClient(f"{url}/summarization").text_generation(TEXT, stream=True))

    async def full(*_: Any) -> Any:
        raise RequestError("overloaded", "too much waits already", 3)

    monkeypatch.setattr(models.hosts["text-generation"]._batcher, "submit_from", full)
    with pytest.raises(OverloadedError, match="too much waits"):
        client.text_generation(TEXT)


CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,unsupported_method"
)


@pytest.mark.parametrize(
    "task", sorted(PREDICTORS) if FUZZ else ["text-classification", "text-generation"]
)
def test_the_api_is_what_it_says_it_is(url: str, task: str, tmp_path: Path) -> None:
    """Requests made by schemathesis from /openapi.json, right and wrong ones: no 5xx, no hang."""
    (tmp_path / "schemathesis.toml").write_text(f'[parameters]\n"path.name" = "{task}"\n')
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml",
            "run", f"{url.removesuffix('/models')}/openapi.json",
            "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--request-timeout", "20",
            "--max-examples", str(FUZZ or 4), "--seed", "1", "--continue-on-failure", "--no-color",
            "--generation-database", "none", "--warnings", "off",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
