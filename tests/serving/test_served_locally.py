"""A model behind HTTP for as long as a block lasts: what is started, and what is told."""

from pathlib import Path

import pytest

from trainyard.errors import UserError
from trainyard.serving import local as locally


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


def test_a_model_that_is_refused_at_once_starts_nothing(tmp_path: Path, done: list[str]) -> None:
    with (
        pytest.raises(UserError, match=r"holds no config\.json"),
        locally.served(str(tmp_path)),
    ):
        pass
    assert done == []
