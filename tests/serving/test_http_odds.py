"""The edge of HTTP: foreign pages, types, encodings, odd headers, methods, names, quotas."""

import asyncio
import gzip
import json
import re
import socket
import threading
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.http_requests import BODY, Echo, ask, with_keys
from support.serving_locally import LocalModels, load, serving
from support.small_models import classifier

from trainyard.errors import UserError
from trainyard.serving.errors import RequestError
from trainyard.serving.gateway import keys as keys_module
from trainyard.serving.gateway.admission import Quotas
from trainyard.serving.gateway.http import build_gateway
from trainyard.serving.gateway.keys import Key, KeyRing, new_key
from trainyard.serving.options import GatewayOptions, HostOptions, check_name

EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def url() -> Any:
    with serving(Echo("mail", "org/name"), GatewayOptions(body_bytes=20_000)) as url:
        yield url


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"}, {"host": "evil.example:8000"}, {"host": "127.0.0.1.evil.example"},
        {"origin": EVIL}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
    ],
)  # fmt: skip
def test_pages_of_other_sites_get_nothing_without_keys(
    url: str, method: str, headers: dict[str, str]
) -> None:
    status, answer, found = ask(url, method, **headers)
    assert status == 403
    assert answer is None if method == "HEAD" else "error" in answer
    assert "access-control-allow-origin" not in found


def test_this_machine_and_its_own_pages_are_answered(url: str) -> None:
    port = urlsplit(url).port
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST", "[::1]:80"):
        assert ask(url, host=host)[0] == 200
    assert ask(url, host=f"localhost:{port}", origin=f"http://localhost:{port}")[0] == 200


def test_hosts_and_origins_are_allowed_by_name(tmp_path: Path) -> None:
    options = GatewayOptions(allowed_hosts=("models.example",), cors_origins=("https://a.example",))
    with serving(Echo("mail"), options) as url:
        assert ask(url, host="models.example")[0] == ask(url)[0] == 200
        assert ask(url, host="evil.example")[0] == 403
        status, _, found = ask(url, origin="https://a.example")
        assert (status, found["access-control-allow-origin"]) == (200, "https://a.example")
        assert ask(url, origin=EVIL)[0] == 403
        preflight = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,authorization",
        }
        assert ask(url, "OPTIONS", origin="https://a.example", **preflight)[0] == 200
        assert ask(url, "OPTIONS", origin=EVIL, **preflight)[0] >= 400
    bearer, ring = with_keys(tmp_path)
    with serving(Echo("mail"), GatewayOptions(), ring) as url:  # a page has no key
        assert ask(url, host="models.example", origin=EVIL, authorization=bearer)[0] == 200
        assert ask(url, "OPTIONS", origin=EVIL, authorization=bearer)[0] == 405
    with serving(Echo("mail"), options, ring) as url:
        assert ask(url, host="models.example", authorization=bearer)[0] == 200
        assert ask(url, authorization=bearer)[0] == 403


def test_probes_by_address_are_answered_whatever_names_are_allowed(tmp_path: Path) -> None:
    """A kubelet or a load balancer knows the address alone, and has no key."""
    _, ring = with_keys(tmp_path)
    options = GatewayOptions(allowed_hosts=("models.example",))
    for keys in (ring, KeyRing(None)):
        with serving(Echo("mail"), options, keys) as url:
            for path in ("/health", "/ready"):
                for method in ("GET", "HEAD"):
                    assert ask(url, method, path, None, host="10.1.2.3:8000")[0] == 200
            assert ask(url, "GET", "/models", host="10.1.2.3:8000")[0] == 403
            assert ask(url, "GET", "/health/", host="10.1.2.3:8000")[0] == 403


def test_pages_behind_a_proxy_that_replaces_the_host_are_this_servers_own() -> None:
    with serving(Echo("mail"), GatewayOptions(allowed_hosts=("models.example",))) as url:
        for origin in ("https://models.example", "https://models.example:8443"):
            assert ask(url, origin=origin)[0] == 200
            assert ask(url, origin=origin, host="127.0.0.1")[0] == 200
        for origin in (EVIL, "null", "https://models.example.evil.example", "http://127.0.0.1:1"):
            status, answer, _ = ask(url, origin=origin)
            assert (status, "`allowed_hosts`" in answer["error"]) == (403, True)


@pytest.mark.parametrize(
    ("key", "entry", "sentence"),
    [
        ("allowed_hosts", "models.example:8000", "without scheme, port or wildcard"),
        ("allowed_hosts", "*", "with API keys, leave the list out to allow any name"),
        ("allowed_hosts", "*.example", "is not a host name"),
        ("allowed_hosts", "https://models.example", "is not a host name"),
        ("allowed_hosts", "", "is not a host name"),
        ("cors_origins", "a.example", "is not an origin as browsers send it"),
        ("cors_origins", "https://a.example/", "without a path"),
        ("cors_origins", "https://A.example", "in lower case"),
        ("cors_origins", "https://a.example:443", "a default port"),
        ("cors_origins", "https://*.example", "is not an origin"),
        ("cors_origins", "null", "is not an origin"),
    ],
)
def test_an_entry_that_could_never_match_is_refused(key: str, entry: str, sentence: str) -> None:
    for options in (GatewayOptions, HostOptions):
        fields = {key: [entry]} | ({"model": "m"} if options is HostOptions else {})
        with pytest.raises(UserError, match=re.escape(sentence)) as found:
            options.parse(fields, "args")
        assert repr(entry) in str(found.value)


def test_names_are_compared_without_case_port_and_brackets() -> None:
    names = ("Models.Example.", "[::2]", "fe80::1", "10.1.2.3")
    assert GatewayOptions(allowed_hosts=names).allowed_hosts == (
        "models.example", "::2", "fe80::1", "10.1.2.3",
    )  # fmt: skip
    with serving(Echo("mail"), GatewayOptions(allowed_hosts=names)) as url:
        hosts = ("models.example", "MODELS.example.:80", "[::2]:8000", "[fe80::1]", "10.1.2.3:1")
        assert [ask(url, host=host)[0] for host in hosts] == [200] * len(hosts)
        port = urlsplit(url).port
        assert ask(url, host=f"LOCALHOST:{port}", origin=f"http://localhost:{port}")[0] == 200


def raw(url: str, *headers: str) -> int:
    """The status of a request with these header lines, as they are."""
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as client:
        lines = ["POST /models/mail HTTP/1.1", *headers, f"Content-Length: {len(BODY)}"]
        client.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + BODY)
        return int(client.recv(1000).split()[1])


LOCAL, TYPE = "Host: 127.0.0.1", "Content-Type: application/json"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((LOCAL, TYPE), 200), ((TYPE,), 200),
        (("Host: localhost.:80", TYPE), 200), (("Host: 127.0.0.1:", TYPE), 200),
        ((LOCAL, "Host: evil.example", TYPE), 400), (("Host: evil.example", LOCAL, TYPE), 400),
        ((LOCAL, "Origin: http://127.0.0.1", f"Origin: {EVIL}", TYPE), 400),
        (("Host: ", TYPE), 403), (("Host: [::1", TYPE), 403), (("Host: [::1]x", TYPE), 403),
        (("Host: 127.0.0.1:x", TYPE), 403), (("Host: 127.0.0.1,evil", TYPE), 403),
        (("Host: a@127.0.0.1", TYPE), 403),
        (("Host: 0.0.0.0", TYPE), 403), (("Host: 127.1", TYPE), 403),
        ((LOCAL, TYPE, "Content-Type: text/plain"), 415), ((LOCAL, "Content-Type: text/plain", TYPE), 415),
        ((LOCAL, "Content-Type: text/plain; application/json"), 415),
        ((LOCAL, TYPE, "Content-Encoding: gzip", "Content-Encoding: gzip"), 415),
        ((LOCAL, TYPE, "Content-Encoding: identity", "Content-Encoding: br"), 415),
    ],
)  # fmt: skip
def test_odd_and_repeated_headers_open_nothing(
    url: str, headers: tuple[str, ...], status: int
) -> None:
    assert raw(url, *headers) == status


def test_only_json_is_read(url: str, tmp_path: Path) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "application/x+json"):
        assert ask(url, content_type=kind)[0] == 200
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json")
    for kind in kinds:
        status, answer, _ = ask(url, content_type=kind)
        assert (status, answer["error_type"]) == (415, "validation")
        assert kind in answer["error"]
    status, answer, _ = ask(url, content_type="")
    assert (status, "is missing" in answer["error"]) == (415, True)
    bearer, ring = with_keys(tmp_path)
    with serving(Echo("mail"), GatewayOptions(), ring) as url:
        assert ask(url, content_type="", authorization=bearer)[0] == 200
        assert ask(url, content_type="text/plain", authorization=bearer)[0] == 415


def test_gzip_is_read_within_the_limits_and_other_encodings_are_named(url: str) -> None:
    assert ask(url, body=gzip.compress(BODY), content_encoding="gzip")[1][1] == BODY.decode()
    assert ask(url, body=BODY, content_encoding="identity")[0] == 200
    bomb = gzip.compress(b" " * 10_000_000)
    assert len(bomb) < 20_000
    assert ask(url, body=bomb, content_encoding="gzip")[0] == 413
    whole = gzip.compress(BODY)
    for broken in (BODY, whole[:-4], whole + b"x", zlib.compress(BODY), b""):
        status, answer, _ = ask(url, body=broken, content_encoding="gzip")
        assert (status, "is not one whole gzip file" in answer["error"]) == (400, True)
    for encoding in ("br", "zstd", "gzip, gzip"):
        status, answer, _ = ask(url, content_encoding=encoding)
        assert (status, encoding in answer["error"]) == (415, True)


def test_a_list_beyond_the_limit_is_answered_with_the_limit_and_the_way_out(tmp_path: Path) -> None:
    host = load(classifier(tmp_path), max_items=4)
    with serving(LocalModels({"mail": host}), GatewayOptions(body_bytes=20_000)) as url:
        for inputs, sentence in (
            (
                ["bana"] * 9,
                "9 inputs, at most 4 are allowed in one request; split the list over 3 requests",
            ),
            (["a" * 12_000] * 2, "larger than 20000 bytes; split a list over several requests"),
        ):
            status, answer, _ = ask(url, body=json.dumps({"inputs": inputs}).encode())
            assert (status, answer["error_type"]) == (413, "too_large")
            assert sentence in answer["error"]
        assert ask(url, "GET")[1]["limits"]["max_items"] == 4
    host.close()


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    host = load(classifier(tmp_path))
    with serving(LocalModels({"mail": host})) as url:
        assert ask(url, body=b"\xef\xbb\xbf" + BODY)[0] == 200
        assert ask(url, body=BODY.decode().encode("utf-16"))[0] == 400
    host.close()


PAGES = ["/health", "/ready", "/models", "/models/mail", "/models/mail/info", "/models/mail/health"]


@pytest.mark.parametrize("path", PAGES)
def test_head_is_get_without_a_body(url: str, path: str) -> None:
    got, head = ask(url, "GET", path), ask(url, "HEAD", path, None)
    assert (head[0], head[1]) == (200, None)
    assert head[2]["content-length"] == got[2]["content-length"]
    assert got[1] is not None


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/models/mail", "GET, HEAD, POST"), ("/models/org/name", "GET, HEAD, POST"), ("/health", "GET, HEAD"),
     ("/models", "GET, HEAD")],
)  # fmt: skip
def test_allow_lists_every_method_of_a_path(url: str, path: str, methods: str) -> None:
    for method in ("PUT", "DELETE", "OPTIONS"):
        status, _, found = ask(url, method, path)
        assert (status, found["allow"]) == (405, methods)


def test_a_model_of_an_organization_is_served_under_its_name(url: str) -> None:
    for path in ("/models/org/name", "/models/org%2Fname", "/models/org/name/"):
        assert ask(url, path=path)[1][0] == "org/name"
        assert ask(url, "GET", path)[1]["name"] == "org/name"
    assert ask(url, "GET", "/models/org/name/health")[1] == {"status": "ok"}
    assert ask(url, "GET", "/models/org/name/info")[1]["name"] == "org/name"
    assert ask(url, path="/models/mail/")[1][0] == "mail"
    for path in ("/models/org", "/models/name", "/models/org/name/x", "/models/", "/models//"):
        assert ask(url, path=path)[0] in (404, 405)


@pytest.mark.parametrize("name", ["org/health", "org/info", "a/b/c", "/a", "a/", "../a", "a//b"])
def test_names_that_would_hide_a_page_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a model name"):
        check_name(name)
    assert check_name("org/name-1.2") == "org/name-1.2"
    assert check_name("health") == "health"


@pytest.mark.parametrize(
    "digits", ["\u00b2", "\u00b9\u00b2", "+5", "-1", "0x5", "1e3", "", "9" * 5000]
)
def test_odd_digits_of_a_length_are_the_clients_mistake(digits: str) -> None:
    """Sent as ASGI, since uvicorn refuses some of them; Serve's proxies pass others on."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        sent.append(message)

    app = build_gateway(Echo("mail"), GatewayOptions(), KeyRing(None))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", digits.encode("latin-1")),
    ]
    scope = {"type": "http", "method": "POST", "path": "/models/mail", "headers": headers}

    async def run() -> None:
        await app(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 400


def test_gets_count_as_requests_in_flight() -> None:
    models = Echo("mail")
    models.gate.clear()
    for path in ("/models", "/models/mail", "/models/mail/health"):
        with serving(models, GatewayOptions(concurrent_requests=1)) as url:
            models.described = 0
            first = threading.Thread(target=ask, args=(url, "GET", path))
            first.start()
            deadline = time.monotonic() + 5
            while not models.described:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            status, answer, found = ask(url, "GET", path)
            assert (status, answer["error_type"], found["retry-after"]) == (429, "overloaded", "1")
            assert ask(url, "GET", "/health")[0] == 200  # a probe must not fail under load
            models.gate.set()
            first.join()
            assert ask(url, "GET", path)[0] == 200
            models.gate.clear()


def test_a_key_has_quotas_of_its_own(tmp_path: Path) -> None:
    bearer, ring = with_keys(tmp_path, requests_per_minute=3)
    with serving(Echo("mail"), GatewayOptions(), ring) as url:
        found = [ask(url, authorization=bearer) for _ in range(4)]
        assert [status for status, _, _ in found] == [200, 200, 200, 429]
        assert (
            "the API key 'all' is used up; it allows 3 requests per minute" in found[3][1]["error"]
        )
        assert 15 <= int(found[3][2]["retry-after"]) <= 20
        assert ask(url, "GET", authorization=bearer)[0] == 429


def test_quotas_refill_and_leave_other_keys_alone() -> None:
    now = [0.0]
    quotas = Quotas(10, lambda: now[0])
    hashed = "0" * 64
    slow = Key(name="slow", sha256=hashed, requests_per_minute=60, concurrent_requests=2)
    other = Key(name="other", sha256=hashed)
    for _ in range(60):
        quotas.count(slow)
    with pytest.raises(RequestError) as refused:
        quotas.count(slow)
    assert refused.value.retry_after == pytest.approx(1)
    for _ in range(100):
        quotas.count(other)
        quotas.count(None)
    now[0] += 1.5
    quotas.count(slow)
    now[0] += 1
    with quotas.hold(slow), quotas.hold(slow):
        with pytest.raises(
            RequestError, match="2 requests of the API key 'slow' are already in progress"
        ):
            quotas.count(slow)
        with pytest.raises(RequestError, match="already in progress"), quotas.hold(slow):
            pass
        quotas.count(other)
    quotas.count(slow)


def test_keys_of_equal_names_have_separate_quotas() -> None:
    quotas = Quotas(10, lambda: 0.0)
    one, other = (
        Key(name="team", sha256=digit * 64, requests_per_minute=1, concurrent_requests=1)
        for digit in "12"
    )
    quotas.count(one)
    with pytest.raises(RequestError, match="'team' is used up"):
        quotas.count(one)
    quotas.count(other)
    with (
        quotas.hold(one),
        quotas.hold(other),
        pytest.raises(RequestError, match="are already in progress"),
    ):
        quotas.count(one)


def test_a_keys_file_that_is_being_written_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off behind a hash, it is valid YAML in which the key opens all models."""
    secret, key = new_key("reports", ["sentiment"])
    whole = f"- name: reports\n  sha256: {key.sha256}\n  models:\n  - sentiment\n"
    cut = whole[: whole.index("  models")]
    file = tmp_path / "keys.yaml"
    file.write_text("[]")
    ring = KeyRing(str(file))
    monkeypatch.setattr(keys_module, "SETTLE_SECONDS", 0.2)
    for size in range(len(whole), len(cut) - 1, -1):
        file.write_text(whole[:size])
        ring.refresh()
        with pytest.raises(RequestError):  # it is not used yet
            ring.admit(f"Bearer {secret}", "payroll")
    file.write_text(whole)
    deadline = time.monotonic() + 5
    while ring._stamp is not None and not ring._keys:
        ring.refresh()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ring.admit(f"Bearer {secret}", "sentiment") is not None
    with pytest.raises(RequestError):
        ring.admit(f"Bearer {secret}", "payroll")


def test_a_key_whose_models_are_null_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- name: a\n  sha256: {'0' * 64}\n  models:\n")
    with pytest.raises(Exception, match="is not a valid list of keys"):
        KeyRing(str(file))


def test_a_key_of_no_models_opens_none() -> None:
    _, key = new_key("reports", [])
    assert not key.opens("sentiment")
    assert new_key("reports")[1].opens("sentiment")
