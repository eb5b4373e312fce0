"""Whatever the real client can send is followed as the predictor does, or refused by a sentence.

The list is read from the signatures of the installed client: a parameter that a new version has
and the tables below do not know is a failure.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError
from serving.test_contract import CALLS, Call, close, plain
from support.serving_locally import LocalModels, serving

BASES = {call.method: call for call in reversed(CALLS)}
"""The plainest call of each method."""

CONTENT = {
    "self", "model", "text", "prompt", "question", "context", "sentence", "other_sentences",
    "candidate_labels",
}  # fmt: skip
"""What is asked, not how."""

VALUES: dict[str, list[Any]] = {
    "top_k": [1, 2], "targets": [["cola", "fele"]], "ignore_labels": [[], ["O", "B-PER"]],
    "stride": [2], "doc_stride": [2], "max_answer_len": [1], "max_question_len": [1],
    "max_seq_len": [9], "hypothesis_template": ["about {}"], "prompt_name": ["query"],
    "dimensions": [1, 8, 33], "src_lang": ["en"], "tgt_lang": ["de"],
    "generate_parameters": [{"num_beams": 2}, {"max_new_tokens": 2}, {"wrong": 1}],
    "adapter_id": ["x"], "best_of": [1, 2], "frequency_penalty": [0.5], "max_new_tokens": [3],
    "grammar": [{"type": "json", "value": {}}], "repetition_penalty": [1.2], "seed": [7],
    "stop": [["a"]], "temperature": [0.7], "top_n_tokens": [0, 2], "top_p": [0.9], "truncate": [2],
    "typical_p": [0.9],
}  # fmt: skip
"""What to send where the signature does not list all that there is."""

TOGETHER: dict[str, dict[str, Any]] = {
    "stride": {"aggregation_strategy": "simple"},
    "src_lang": {"tgt_lang": "de"},
    "tgt_lang": {"src_lang": "en"},
    "decoder_input_details": {"details": True},
    "top_n_tokens": {"details": True},
}
"""Parameters that go with others only."""

REFUSED = {
    "encoding_format='base64'": "parameters.encoding_format is 'base64': input should be 'float'",
    "prompt_name='query'": "the model has no prompts; send one of them or none",
    "dimensions=33": "vectors have 32 numbers; send at most that",
    "generate_parameters={'wrong': 1}": "parameters.wrong is not a parameter of",
    **{
        f"{name}={value!r}": f"parameters.{name} is not supported here; leave it out"
        for name, value in (
            ("adapter_id", "x"), ("best_of", 2), ("decoder_input_details", True), ("watermark", True),
            ("grammar", {"type": "json", "value": {}}), ("top_n_tokens", 2),
        )
    },
}  # fmt: skip
"""What is refused, and how the sentence ends or begins."""


def values_of(name: str, hint: Any) -> list[Any]:
    """Every value of a boolean or a literal type; else those of the table."""
    options = get_args(hint) or (hint,)
    found = [
        value
        for option in options
        for value in (get_args(option) if get_origin(option) is Literal else ())
    ]
    return found or ([True, False] if bool in options else VALUES[name])


def sent_by_the_client() -> Iterator[Any]:
    for method, call in BASES.items():
        function = getattr(InferenceClient, method)
        hints = get_type_hints(function, localns={"np": np})
        for name in inspect.signature(function).parameters:
            if name not in CONTENT:
                for value in values_of(name, hints[name]):
                    yield pytest.param(call, name, value, id=f"{method}-{name}={value!r}")


@pytest.fixture(scope="module")
def url(every_host: dict[str, Any]) -> Iterator[str]:
    with serving(LocalModels(every_host)) as url:
        yield f"{url}/models"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses any request while HF_HUB_OFFLINE is set, also to this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(("call", "name", "value"), list(sent_by_the_client()))
def test_a_parameter_is_followed_or_refused(
    url: str, every_host: dict[str, Any], call: Call, name: str, value: Any
) -> None:
    more = {**TOGETHER.get(name, {}), name: value}
    fixed = {"seed": 3} if call.method == "text_generation" else {}
    ask = getattr(InferenceClient(f"{url}/{call.task}"), call.method)
    refused = REFUSED.get(f"{name}={value!r}")
    if refused is not None:
        with pytest.raises((HfHubHTTPError, ValidationError)) as raised:
            ask(**{**call.arguments, **fixed, **more})
        assert refused in str(raised.value)
        return
    found = ask(**{**call.arguments, **fixed, **more})
    if name == "stream":
        found = "".join(found) if value else found
        more = {}
    predictor = every_host[call.task].predictor
    expected = predictor(call.inputs, **{**call.parameters, **fixed, **more})
    if more.get("details"):
        assert found.generated_text == expected[0]["generated_text"]
    else:
        close(plain(found), plain(call.pick(expected)))


def test_every_method_for_texts_is_asked() -> None:
    """All of the client's methods that begin with a text, but those of other kinds of model."""
    others = {"text_to_image", "text_to_speech", "text_to_video", "table_question_answering"}
    methods = {
        name
        for name, function in inspect.getmembers(InferenceClient, inspect.isfunction)
        if not name.startswith("_")
        and (CONTENT - {"model"}) & set(list(inspect.signature(function).parameters)[1:2])
    }
    assert methods - others == set(BASES)
