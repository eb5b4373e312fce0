"""The gateway and a host over real HTTP: the real client, the limits, the keys, the errors."""

import asyncio
import http.client
import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from support.serve_requests import JSON
from support.serving_locally import LocalModels, load, serving
from support.small_models import LABELS, classifier

from trainyard.serving.answer import Answer
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway import openapi
from trainyard.serving.gateway.keys import KeyRing, new_key
from trainyard.serving.options import GatewayOptions
from trainyard.serving.replica.host import Host

HEAD = b"POST /models/mail HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
LONG = "cola bana " * 60


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses any request while HF_HUB_OFFLINE is set, also to this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def host(source: Path) -> Iterator[Host]:
    host = load(source, max_items=8)
    yield host
    host.close()


@pytest.fixture(scope="module")
def url(host: Host) -> Iterator[str]:
    with serving(LocalModels({"mail": host}), GatewayOptions(body_bytes=20_000)) as url:
        yield url


def ask(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of one request."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, JSON | (headers or {}))
    response = connection.getresponse()
    text = response.read()
    connection.close()
    found = {key.lower(): value for key, value in response.getheaders()}
    return response.status, json.loads(text) if text else None, found


def post(url: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
    return ask(
        url, "POST", "/models/mail", body, {k.replace("_", "-"): v for k, v in headers.items()}
    )


def test_the_real_client_gets_what_transformers_gives(url: str, source: Path) -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(source), top_k=None)
    found = InferenceClient(f"{url}/models/mail").text_classification("bana cola", top_k=3)
    assert [(f.label, pytest.approx(f.score, abs=1e-5)) for f in found] == [
        (e["label"], e["score"]) for e in classify(["bana cola"])[0]
    ]
    again = asyncio.run(AsyncInferenceClient(f"{url}/models/mail").text_classification("bana cola"))
    assert [f.label for f in again] == [f.label for f in found]


def test_health_and_info_as_the_client_asks_them(url: str) -> None:
    client = InferenceClient(f"{url}/models/mail", provider="hf-inference")
    assert client.health_check()
    assert client.get_endpoint_info()["labels"] == list(LABELS)


def test_a_list_gives_a_list_and_neighbors_do_not_matter(url: str) -> None:
    texts = ["bana", "cola bana dude", LONG[:90], "gige"]
    _, together, _ = post(url, {"inputs": texts})
    assert len(together) == 4
    for text, answer in zip(texts, together, strict=True):
        _, alone, _ = post(url, {"inputs": text})
        for a, b in zip(answer, alone[0], strict=True):
            assert a["label"] == b["label"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_truncation_is_asked_for_and_reported(url: str) -> None:
    status, body, _ = post(url, {"inputs": LONG})
    assert (status, body["error_type"]) == (422, "validation")
    assert "242 tokens and only 64 fit" in body["error"]
    status, _, headers = post(url, {"inputs": ["bana", LONG], "parameters": {"truncation": True}})
    assert (status, headers["x-truncated-tokens"]) == (200, "0,178")
    with pytest.raises(HfHubHTTPError, match="only 64 fit"):
        InferenceClient(f"{url}/models/mail").text_classification(LONG)


def test_requests_at_the_same_time_fail_each_by_themselves(host: Host) -> None:
    bodies = [b'{"inputs": "bana"}', b"{", b'{"inputs": 3}', b'{"inputs": "cola bana"}']

    async def asked(*requests: tuple[bytes, float]) -> list[Answer]:
        return await asyncio.gather(*(host.answer(*request) for request in requests))

    together = asyncio.run(asked(*((body, 20) for body in bodies)))
    assert [answer.status for answer in together] == [200, 400, 422, 200]
    late = asyncio.run(asked((bodies[0], 20), (bodies[0], -1)))
    assert late[0].status == 200
    assert late[1].status in (429, 503)  # refused at once, or shed
    for body, answer in zip(bodies, together, strict=True):
        alone = asyncio.run(host.answer(body, 20))
        if alone.status != 200:
            assert answer == alone
        else:
            for a, b in zip(json.loads(answer.body)[0], json.loads(alone.body)[0], strict=True):
                assert a == {"label": b["label"], "score": pytest.approx(b["score"], abs=1e-5)}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body is not valid JSON"),
        (b"", 400, "the body is not valid JSON"),
        (b"\xff\xfe", 400, "the body is not valid JSON"),
        (b"[" * 15_000, 400, "the body is not valid JSON"),
        (b'{"inputs": NaN}', 400, "the body is not valid JSON"),
        ([1], 422, 'the body must be a JSON object with "inputs"'),
        ({"input": "x"}, 422, 'the body must be a JSON object with "inputs"'),
        ({"inputs": 3}, 422, "inputs must be"),
        ({"inputs": []}, 422, "inputs is an empty list"),
        ({"inputs": "x", "parameters": []}, 422, '"parameters" must be a JSON object'),
        ({"inputs": "x", "parameters": {"top_n": 1}}, 422, "did you mean top_k?"),
        ({"inputs": "x", "parameters": {"top_k": 0}}, 422, "parameters.top_k is 0"),
        (
            {"inputs": ["x"] * 9},
            413,
            "the request holds 9 inputs, at most 8 are allowed in one request",
        ),
        ({"inputs": "x" * 20_000}, 413, "the body is larger than 20000 bytes"),
        ({"inputs": "\ud800"}, 400, "the body is not valid JSON"),
    ],
)
def test_a_mistake_is_answered_by_a_sentence(
    url: str, body: Any, status: int, sentence: str
) -> None:
    found, answer, _ = post(url, body)
    assert (found, sorted(answer)) == (status, ["error", "error_type"])
    assert sentence in answer["error"]
    assert "Traceback" not in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("POST", "/models/none", 404, "no model named 'none'; available: mail"),
        ("GET", "/models/none", 404, "available: mail"),
        ("POST", "/models/..%2f..%2fetc", 404, "there is no such path"),
        ("GET", "/nothing", 404, "there is no such path; see /docs"),
        ("PUT", "/models/mail", 405, "PUT is not for this path"),
    ],
)
def test_unknown_names_and_paths(
    url: str, method: str, path: str, status: int, sentence: str
) -> None:
    found, answer, _ = ask(url, method, path, {"inputs": "x"})
    assert found == status
    assert sentence in answer["error"]


def test_pages_about_models_and_readiness(url: str) -> None:
    status, models, _ = ask(url, "GET", "/models")
    assert (status, models[0]["name"], models[0]["task"]) == (200, "mail", "text-classification")
    _, about, _ = ask(url, "GET", "/models/mail")
    assert about["limits"]["max_tokens"] == 64
    assert about["labels"] == list(LABELS)
    assert ask(url, "GET", "/health")[0] == ask(url, "GET", "/ready")[0] == 200
    _, schema, _ = ask(url, "GET", "/openapi.json")
    request = schema["components"]["schemas"]["TextClassificationRequest"]
    assert "top_k" in request["properties"]["parameters"]["properties"]


def test_a_model_that_cannot_answer_does_not_hide_the_others(host: Host) -> None:
    class Broken(LocalModels):
        async def describe(self, name: str) -> dict[str, Any]:
            if name == "broken":
                raise RequestError("unavailable", "model 'broken' cannot be loaded")
            return await super().describe(name)

    with serving(Broken({"broken": host, "mail": host})) as url:
        status, (broken, mail), _ = ask(url, "GET", "/models")
        assert ask(url, "GET", "/models/broken")[0] == 503
    assert status == 200
    assert broken == {"name": "broken", "error": "model 'broken' cannot be loaded"}
    assert mail["task"] == "text-classification"


def test_request_ids_are_given_back_and_made_harmless(url: str) -> None:
    assert post(url, {"inputs": "x"}, x_request_id="mine-7")[2]["x-request-id"] == "mine-7"
    strange = post(url, {"inputs": "x"}, x_request_id="a b\tc")[2]["x-request-id"]
    assert strange.isalnum()


def test_a_model_that_nobody_loaded_is_not_ready() -> None:
    with serving(LocalModels({})) as url:
        status, body, headers = ask(url, "GET", "/ready")
        assert (status, body["error_type"], headers["retry-after"]) == (503, "unavailable", "1")
        assert ask(url, "GET", "/health")[0] == 200


def test_dripping_clients_cost_a_connection_and_nothing_else(host: Host) -> None:
    options = GatewayOptions(body_seconds=0.7, concurrent_requests=200)
    with serving(LocalModels({"mail": host}), options) as url:
        address = urlsplit(url)
        dripping = [socket.create_connection((address.hostname, address.port)) for _ in range(60)]
        for one in dripping:
            one.sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
        statuses = [post(url, {"inputs": "bana"})[0] for _ in range(40)]
        assert statuses == [200] * 40
        time.sleep(0.8)
        assert dripping[0].recv(100).startswith(b"HTTP/1.1 408")
        for one in dripping:
            one.close()


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as one:
        one.sendall(HEAD + b"Content-Length: 300000000\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_without_a_length_is_counted(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as one:
        one.sendall(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"5000\r\n" + b"x" * 0x5000 + b"\r\n"
        )  # fmt: skip
        assert one.recv(100).startswith(b"HTTP/1.1 413")


def test_keys_open_their_models_only(host: Host, tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "keys.yaml"
    secret, everything = new_key("all")
    other, scoped = new_key("reports", ["elsewhere"])
    entries = [key.model_dump(mode="json", exclude_none=True) for key in (everything, scoped)]
    file.write_text(yaml.safe_dump(entries))
    assert secret not in file.read_text()
    ring = KeyRing(str(file))
    with serving(LocalModels({"mail": host}), keys=ring) as url:
        assert post(url, {"inputs": "x"}, authorization=f"Bearer {secret}")[0] == 200
        client = InferenceClient(f"{url}/models/mail", token=secret)
        assert client.text_classification("bana")
        refused = [
            post(url, {"inputs": "x"}, **headers)
            for headers in (
                {}, {"authorization": "Bearer no"}, {"authorization": f"Bearer {other}"},
                {"authorization": secret}, {"authorization": "Bearer \xff\xfe"},
            )
        ]  # fmt: skip
        assert [status for status, _, _ in refused] == [401] * 5
        assert len({body["error"] for _, body, _ in refused}) == 1
        assert ask(url, "GET", "/models")[0] == ask(url, "GET", "/models/mail")[0] == 401
        assert ask(url, "GET", "/health")[0] == 200
        other_key = {"authorization": f"Bearer {other}"}
        assert ask(url, "GET", "/models", headers=other_key)[1] == []
        assert (
            len(ask(url, "GET", "/models", headers={"authorization": f"Bearer {secret}"})[1]) == 1
        )
        file.write_text("[]")
        ring.refresh()
        assert post(url, {"inputs": "x"}, authorization=f"Bearer {secret}")[0] == 401


def test_the_page_about_the_api_loads_from_here_alone(url: str) -> None:
    def get(path: str) -> tuple[Any, str]:
        with urllib.request.urlopen(f"{url}/{path}", timeout=30) as response:
            return response, response.read().decode("utf-8", "replace")

    response, page = get("docs")
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert sorted(loaded) == sorted(f"docs/{name}" for name in openapi.DOCS_FILES)
    assert 'url: "openapi.json"' in page
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for name, kind in openapi.DOCS_FILES.items():
        assert get(f"docs/{name}")[0].headers["content-type"].startswith(kind)
    assert 'PACKAGE_VERSION:"5.' in get("docs/swagger-ui-bundle.js")[1]  # 4 cannot read OpenAPI 3.1
    assert ask(url, "GET", "/docs/redoc.standalone.js")[0] == 404
    assert ask(url, "GET", "/docs/..%2f__init__.py")[0] == 404
