"""The first minute of a server: its port, its banner, its landing page, models that still load, its end."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.http_requests import Echo, ask, with_keys
from support.serve_stand_ins import applications
from support.serving_locally import free_port, serving
from support.small_models import classifier

from trainyard.errors import UserError
from trainyard.serving import local
from trainyard.serving.gateway import deployment, discovery
from trainyard.serving.gateway.discovery import FAILED, LOADING, ServeModels
from trainyard.serving.gateway.landing import curl, page
from trainyard.serving.local import _free_port
from trainyard.serving.options import MODEL, GatewayOptions, url_host


class Loading(Echo):
    """Models of which two are not loaded yet."""

    def loading(self) -> dict[str, str]:
        return {"heavy": LOADING, "org/lost": FAILED}

    async def describe(self, name: str) -> dict[str, Any]:
        return {"task": "fill-mask", "example": {"inputs": f"It's <mask> of {name}."}}


def text_of(url: str, path: str, **headers: str) -> str:
    import http.client

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == 200
    assert "default-src 'none'" in (response.getheader("content-security-policy") or "")
    return text


def test_the_first_url_is_a_page_and_json_for_programs(tmp_path: Path) -> None:
    with serving(Loading("mail", "org/name")) as url:
        text = text_of(url, "/", accept="text/html,*/*")
        for part in (
            'href="playground#org%2Fname"', 'href="models/org/name"', 'href="docs"', "heavy: not loaded",
            f"curl {url}/models/mail -H &#x27;Content-Type: application/json&#x27;",
        ):  # fmt: skip
            assert part in text
        status, found, _ = ask(url, "GET", "/")
        assert (status, found["loaded"]) == (200, ["/models/mail", "/models/org/name"])
        for name in ("models", "docs", "playground", "openapi", "health", "ready"):
            assert ask(url, "GET", found[name])[0] == 200
        assert ask(url, "HEAD", "/", None)[0] == 200
        assert ask(url, "PUT", "/")[2]["allow"] == "GET, HEAD"
        assert ask(url, "GET", "/", host="evil.example")[0] == 403
    with serving(Loading()) as url:
        assert "not loaded yet" in text_of(url, "/", accept="text/html")
    _, ring = with_keys(tmp_path)
    with serving(Loading("secret-project"), GatewayOptions(), ring) as url:
        text = text_of(url, "/", accept="text/html") + json.dumps(ask(url, "GET", "/")[1])
        text += json.dumps(ask(url, "GET", "/openapi.json")[1])
        assert "asks for an API key" in text
        assert not any(name in text for name in ("secret-project", "heavy", "org/lost"))


def test_the_page_shows_hostile_text_as_text() -> None:
    text = page("http://a.example/<b>", ["mail"], ["<script>"], "curl '<i>'")
    assert not any(tag in text for tag in ("<b>", "<script>", "<i>"))


def test_the_command_to_copy_is_what_a_shell_sends() -> None:
    example = {"inputs": 'It\'s "$HOME" `date` \\ ü'}
    words = shlex.split(curl("http://127.0.0.1:8000", "org/name", example, key=True))
    assert words[1] == "http://127.0.0.1:8000/models/org/name"
    assert words[3] == "Content-Type: application/json"
    assert words[5] == "Authorization: Bearer $TRAINYARD_KEY"
    assert json.loads(words[7]) == example


def test_a_model_that_still_loads_is_no_unknown_model(tmp_path: Path) -> None:
    bearer, ring = with_keys(tmp_path, models=["mail", "heavy"])
    with serving(Loading("mail", "other")) as url:
        for method in ("POST", "GET"):
            for name, why in (("heavy", LOADING), ("org/lost", FAILED)):
                status, answer, found = ask(url, method, f"/models/{name}")
                assert (status, answer["error_type"]) == (503, "unavailable")
                assert answer["error"] == f"model '{name}' {why}"
                assert found["retry-after"] == "5"
            status, answer, _ = ask(url, method, "/models/maill")
            assert status == 404
            assert answer["error"] == "no model named 'maill'; available: mail, other"
    with serving(Loading("mail", "other"), GatewayOptions(), ring) as url:
        assert ask(url, path="/models/heavy", authorization=bearer)[0] == 503
        for name in ("org/lost", "other", "none"):  # nothing tells which of them exist
            assert ask(url, path=f"/models/{name}", authorization=bearer)[0] == 401


def test_loading_models_are_known_by_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(status: str) -> Any:
        idle = SimpleNamespace(replica_states={}, status="UPDATING")
        return SimpleNamespace(deployments={MODEL: idle}, status=status, last_deployed_time_s=1)

    configs: dict[str, Any] = {
        "mail": {"deployments": [{"user_config": {"source": "m"}}]},
        "two": {"args": {"name": "org/two"}, "deployments": [{"user_config": {"source": "m"}}]},
        "rare": {"deployments": [{"user_config": {"models": {"a": {}, "b": {}}}}]},
        "odd": {"args": {"name": 5}, "deployments": [{"user_config": {"models": 7}}]},
        "trainyard": None,
    }
    applications(
        monkeypatch,
        {name: app("DEPLOY_FAILED" if name == "two" else "DEPLOYING") for name in configs},
    )
    details = {name: {"deployed_app_config": config} for name, config in configs.items()}
    client = SimpleNamespace(get_serve_details=lambda: {"applications": details})
    monkeypatch.setattr(discovery, "_get_global_client", lambda: client)
    models = ServeModels(["sentiment"])
    import asyncio

    asyncio.run(models.refresh())
    names = ("mail", "a", "b", "5", "sentiment")
    assert models.loading() == {"org/two": FAILED, **dict.fromkeys(names, LOADING)}


def test_the_docs_have_keys_tags_and_the_examples_of_the_loaded_models(tmp_path: Path) -> None:
    with serving(Loading("mail")) as url:
        api = ask(url, "GET", "/openapi.json")[1]
    assert api["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert {tag["name"] for tag in api["tags"]} == {"models", "status"}
    post = api["paths"]["/models/{name}"]["post"]
    assert (post["tags"], post["security"]) == (["models"], [{}, {"key": []}])
    assert post["parameters"][0]["examples"] == {"mail": {"value": "mail"}}
    examples = post["requestBody"]["content"]["application/json"]["examples"]
    assert next(iter(examples.items())) == (
        "model mail", {"value": {"inputs": "It's <mask> of mail."}},
    )  # fmt: skip
    _, ring = with_keys(tmp_path)
    with serving(Loading("mail"), GatewayOptions(), ring) as url:
        post = ask(url, "GET", "/openapi.json")[1]["paths"]["/models/{name}"]["post"]
    assert post["security"] == [{"key": []}]


def test_a_port_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's proxies do
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used .Address already in use"):
            _free_port(port)
        deployment.check_port("127.0.0.1", port)  # a process of this server
        monkeypatch.setattr(os, "getppid", lambda: 2**30)
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(UserError, match=f"port {port} is already in use by process"):
                deployment.check_port(host, port)
        deployment.check_port("127.0.0.2", port)
    deployment.check_port("127.0.0.1", port)
    assert _free_port(port) == port


def test_a_free_port_is_not_one_that_a_process_of_ray_can_get_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server starts seconds later, after dozens of other ports have been assigned."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(20_000 <= _free_port(None) < lowest for _ in range(20))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        used = listener.getsockname()[1]
        monkeypatch.setattr(local, "_unassigned_ports", lambda: [used, 0])
        assert _free_port(0) != used


def test_a_gateway_that_other_machines_reach_needs_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    http = SimpleNamespace(host="0.0.0.0", port=free_port())
    monkeypatch.setattr(deployment, "_get_global_client", lambda: SimpleNamespace(http_config=http))
    with pytest.raises(UserError, match=r"listens on 0\.0\.0\.0 and there are no API keys; set"):
        deployment.Gateway({})


@pytest.mark.parametrize(
    ("host", "shown"),
    [("::1", "[::1]"), ("::", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.0.0.1", "10.0.0.1")],
)
def test_a_host_in_a_url(host: str, shown: str) -> None:
    assert url_host(host) == shown


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(
        UserError, match=f"port {port} is not a port; give a number from 1 to 65535"
    ):
        _free_port(port)


def test_a_server_greets_and_leaves_quietly(tmp_path: Path) -> None:
    """The command as a person runs it: what is copied from its banner works, Ctrl-C ends it."""
    model = classifier(tmp_path / "mail")
    port = free_port()
    # A shell without job control starts its background processes with Ctrl-C ignored.
    code = (
        "import signal as s, trainyard.command as c; s.signal(2, s.default_int_handler); c.main()"
    )
    command = [sys.executable, "-c", code, "serve", "--model-name-or-path", str(model)]
    command += ["--port", str(port)]
    terminal = tmp_path / "terminal"
    with terminal.open("w") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 240
            while "docs " not in terminal.read_text():
                assert process.poll() is None, terminal.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            lines = terminal.read_text().splitlines()
            line = next(line for line in lines if line.startswith("  try "))
            answer = subprocess.run(
                line.removeprefix("  try"), shell=True, capture_output=True, check=True
            )
            assert "label" in json.loads(answer.stdout)[0][0]
            again = subprocess.run(command, capture_output=True, text=True, check=False)
            assert again.returncode == 2
            assert "Traceback" not in again.stderr
            assert f"error: --port {port} cannot be used (Address already in use)" in again.stderr
            os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does; tests/wheel.py: Ctrl-C
            out, _ = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["url"] == f"http://127.0.0.1:{port}/models/mail"
    unwanted = (" -- ", "raylet", "graceful", "Traceback", "WARNING")
    assert not [
        line for line in terminal.read_text().splitlines() if any(w in line for w in unwanted)
    ]
