"""Generated bodies against a host: every one gets an answer, none a 5xx."""

import asyncio
import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_locally import load
from small_models import classifier

from trainyard.serving.host import Host


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


@settings(
    max_examples=int(os.environ.get("TRAINYARD_FUZZ", "400")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(body=bodies)
def test_no_body_breaks_a_host(host: Host, body: bytes) -> None:
    answer = asyncio.run(asyncio.wait_for(host.answer(body, 20), 20))
    found = json.loads(answer.body)
    assert answer.status == 200 or (
        400 <= answer.status < 500 and sorted(found) == ["error", "error_type"]
    )
