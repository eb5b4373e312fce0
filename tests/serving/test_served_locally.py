"""A model behind HTTP for as long as a block lasts: what is started, and what is told."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.command import parse
from trainyard.errors import UserError
from trainyard.serving import local as locally
from trainyard.serving.options import HostOptions
from trainyard.serving.server import ServeConfig, serve_model


@pytest.fixture(autouse=True)
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of Ray and of Ray Serve, of which there is neither."""
    found: list[str] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(locally, "_wait_until_ready", lambda _: None)

    def noted(name: str) -> None:
        path = name if name.startswith("ray.") else f"ray.{name}"
        monkeypatch.setattr(path, lambda *_, **__: found.append(name))

    for name in ("ray.init", "serve.run", "ray.shutdown"):
        noted(name)
    monkeypatch.setattr(locally, "_start_serve", lambda *_: found.append("serve.start"))
    monkeypatch.setattr(locally, "_stop", lambda: found.append("serve.shutdown"))
    return found


def test_what_fails_inside_the_block_is_no_failure_to_serve(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    monkeypatch.setattr(locally, "build", dict)

    def block() -> None:
        with locally.served("mail") as url:
            assert url.endswith("/models/mail")
            raise RuntimeError("the block's own")

    with pytest.raises(RuntimeError, match="the block's own"):
        block()
    assert done == ["ray.init", "serve.start", "serve.run", "serve.shutdown", "ray.shutdown"]


@pytest.mark.usefixtures("done")
def test_hosts_and_origins_are_options_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(locally, "build", options.update)
    monkeypatch.setattr("trainyard.serving.server.resolve_model", lambda _: None)

    def stop(url: str, timeout: float) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr("urllib.request.urlopen", stop)
    flags = ["--model-name-or-path", "mail", "--allowed-hosts", "models.example.com", "proxy"]
    origins = ["--cors-origins", "https://app.example.com"]
    with pytest.raises(KeyboardInterrupt):
        serve_model(parse(ServeConfig, [*flags, *origins]))
    wanted = HostOptions.parse(options, "build")
    assert wanted.allowed_hosts == ("models.example.com", "proxy")
    assert wanted.cors_origins == ("https://app.example.com",)


def test_a_model_that_is_refused_at_once_starts_nothing(tmp_path: Path, done: list[str]) -> None:
    with (
        pytest.raises(UserError, match=r"holds no config\.json"),
        locally.served(str(tmp_path)),
    ):
        pass
    assert done == []
