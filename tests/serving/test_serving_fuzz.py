"""Generated bodies against a host: every one gets an answer, none a 5xx."""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.serving_locally import load
from support.small_models import classifier

from trainyard.inference.registry import PREDICTORS
from trainyard.serving.replica.host import Host

EXAMPLES = int(os.environ.get("TRAINYARD_FUZZ", "400"))

THOROUGH: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = load(classifier(tmp_path_factory.mktemp("classifier")), max_items=8)
    yield host
    host.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
near_requests = st.fixed_dictionaries(
    {"inputs": json_values | st.text() | st.lists(st.text(max_size=40), max_size=10)},
    optional={
        "parameters": json_values
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("top_k", "function_to_apply", "truncation", "x"), json_values),
        ),
        "stream": json_values,
        "options": json_values,
    },
)
bodies = st.binary(max_size=200) | (json_values | near_requests).map(
    lambda v: json.dumps(v).encode()
)


def answered(host: Host, body: bytes) -> int:
    """The status of an answer, which must come, and be no fault of ours."""
    answer = asyncio.run(asyncio.wait_for(host.answer(body, 20), 20))
    found = json.loads(answer.body)
    assert answer.status == 200 or (
        400 <= answer.status < 500 and sorted(found) == ["error", "error_type"]
    ), found
    return answer.status


@settings(max_examples=EXAMPLES, **THOROUGH)
@given(body=bodies)
def test_no_body_breaks_a_host(host: Host, body: bytes) -> None:
    answered(host, body)


words = st.sampled_from(["bana", "cola", "[MASK]", "[SEP]", "[UNK]", "\0", "ﬀ", "..", ","])
texts = st.text(max_size=40) | st.lists(words, max_size=90).map(" ".join)
"""Some longer than the models' 64 tokens."""

pairs = st.fixed_dictionaries({"question": texts, "context": texts})


def requests_of(task: str) -> st.SearchStrategy[dict[str, Any]]:
    """Requests whose parameters have the right types, mostly, and any values."""
    hints = get_type_hints(PREDICTORS[task].parameters, include_extras=True)
    known = {
        name: st.from_type(hint) | st.integers(0, 70) | json_values for name, hint in hints.items()
    }
    if "candidate_labels" in known:
        known["candidate_labels"] |= st.lists(texts, max_size=30)
    inputs = pairs if task == "question-answering" else texts
    return st.fixed_dictionaries(
        {
            "inputs": inputs | st.lists(inputs, max_size=4) | json_values,
            "parameters": st.fixed_dictionaries({}, optional=known),
        }
    )


@pytest.mark.parametrize(
    "task",
    ["zero-shot-classification", "question-answering", "token-classification", "fill-mask",
     "feature-extraction"],
)  # fmt: skip
def test_no_parameters_break_a_task(every_host: dict[str, Host], task: str) -> None:
    seen: set[int] = set()
    few = max(1, EXAMPLES // 4)

    @settings(max_examples=few, derandomize=EXAMPLES <= 400, **THOROUGH)
    @given(request=requests_of(task))
    def ask(request: dict[str, Any]) -> None:
        seen.add(answered(every_host[task], json.dumps(request).encode()))

    ask()
    assert 200 in seen, "nothing that was asked made sense"
