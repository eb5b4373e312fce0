"""What the gateway keeps up to date: keys and models, each by itself; and when it is ready."""

import asyncio
import contextlib
import http.client
import json
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import yaml
from support.serve_stand_ins import applications
from support.serving_locally import LocalModels, free_port, serving

from trainyard.errors import UserError
from trainyard.serving.app import gateway_application
from trainyard.serving.gateway import deployment as module
from trainyard.serving.gateway import keys as keys_module
from trainyard.serving.gateway.deployment import Gateway
from trainyard.serving.gateway.discovery import FAILED, ServeModels
from trainyard.serving.gateway.keys import KeyRing


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gateway:
    """One with a keys file, whose models are found a thousand times a second."""
    listens = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1", port=free_port()))
    monkeypatch.setattr(module, "_get_global_client", lambda: listens)
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.001)
    monkeypatch.setattr(keys_module, "SETTLE_SECONDS", 0.0)
    keys = tmp_path / "keys.yaml"
    keys.write_text("[]")
    return Gateway({"keys_file": str(keys)})


async def healthy(gateway: Gateway, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await gateway.check_health()
            return True
    return False


def test_a_broken_keys_file_does_not_freeze_the_models(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed = asyncio.Event()

    async def refresh(_: ServeModels) -> None:
        refreshed.set()

    def unreadable(_: KeyRing) -> None:
        raise UserError("it is not a valid list of keys")

    monkeypatch.setattr(ServeModels, "refresh", refresh)
    monkeypatch.setattr(KeyRing, "refresh", unreadable)

    async def run() -> None:
        gateway.__serve_build_asgi_app__()
        async with asyncio.timeout(5):
            await refreshed.wait()
        gateway._refreshing.cancel()

    asyncio.run(run())


def test_a_broken_or_absent_keys_file_is_logged_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refreshed = 0

    async def refresh(_: ServeModels) -> None:
        nonlocal refreshed
        refreshed += 1

    monkeypatch.setattr(ServeModels, "refresh", refresh)
    file = gateway._keys._path
    assert file is not None

    async def rounds() -> int:
        """Let the gateway refresh ten times; return how often it logged since the start."""
        until = refreshed + 10
        while refreshed < until:
            await asyncio.sleep(0.001)
        return caplog.text.count("the keys could not be refreshed")

    async def run() -> None:
        gateway.__serve_build_asgi_app__()
        async with asyncio.timeout(10):
            file.write_text("[broken")
            assert await rounds() == 1
            file.write_text("[broken again")
            assert await rounds() == 2
            file.unlink()
            assert await rounds() == 3
            file.write_text("[]")
            assert await rounds() == 3
        gateway._refreshing.cancel()

    asyncio.run(run())


def test_serve_sends_requests_to_a_gateway_that_knows_its_models(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    async def refresh(_: ServeModels) -> None:
        if away:
            raise RuntimeError("the controller restarts")

    monkeypatch.setattr(ServeModels, "refresh", refresh)

    async def run() -> None:
        nonlocal away
        gateway.__serve_build_asgi_app__()
        assert not await healthy(gateway, 0.05)
        away = False
        assert await healthy(gateway, 5)
        away = True
        assert await healthy(gateway, 0.05)  # one that serves is not replaced for it
        gateway._refreshing.cancel()

    asyncio.run(run())


def test_a_single_gateway_is_replaced_without_a_gap() -> None:
    deployment = gateway_application({})._bound_deployment
    assert deployment.num_replicas == 1
    assert deployment._deployment_config.max_surge_percent == 100


def test_an_application_that_failed_to_be_built_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = SimpleNamespace(deployments={}, status="DEPLOY_FAILED", last_deployed_time_s=1)
    applications(monkeypatch, {"mail": failed})
    models = ServeModels(["sentiment"])
    asyncio.run(models.refresh())
    assert models.waiting_for() == ["mail"]
    assert models.loading() == {"sentiment": FAILED}


def test_who_is_waited_for_is_no_public_matter() -> None:
    class Waiting(LocalModels):
        def waiting_for(self) -> list[str]:
            return ["secret-project"]

    with serving(Waiting({})) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.request("GET", "/ready")
        response = connection.getresponse()
        body = json.load(response)
        connection.close()
    assert response.status == 503
    assert body["error"] == "not ready: 1 of the applications; `serve status` names them"


@pytest.mark.parametrize("names", [("123", "2024"), ("no", "1e3", "null"), ("~",), ("2024-01-01",)])
def test_a_new_key_is_read_as_it_was_written(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainyard.serving.check import main

    main(["new-key", *names])
    printed = capsys.readouterr()
    file = tmp_path / "keys.yaml"
    file.write_text(printed.out * 2)  # each goes to the end of the file
    secret = printed.err.split()[-1]
    assert printed.err == f"give this key to its user; it is not stored anywhere: {secret}\n"
    ring = KeyRing(str(file))
    for model in [*names[1:], None]:
        key = ring.admit(f"Bearer {secret}", model)
        assert key is not None
        assert key.name == names[0]
    (entry, _) = yaml.safe_load(file.read_text())
    assert entry.get("models") == (sorted(names[1:]) or None)
