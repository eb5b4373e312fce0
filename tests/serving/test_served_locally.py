"""A model behind HTTP for as long as a block lasts: what is started, and what is told."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.small_models import classifier

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


def run_alone(code: str) -> None:
    """Run code in a process that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_fails_inside_the_block_is_no_failure_to_serve(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    monkeypatch.setattr(locally, "build", lambda _: done.append("build"))

    def block() -> None:
        with locally.served("mail") as url:
            assert url.endswith("/models/mail")
            raise RuntimeError("the block's own")

    with pytest.raises(RuntimeError, match="the block's own"):
        block()
    started = ["ray.init", "serve.start", "build", "serve.run"]  # built while Serve starts
    assert done == [*started, "serve.shutdown", "ray.shutdown"]


def test_a_model_that_cannot_be_built_leaves_no_ray(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    def fail(args: dict[str, Any]) -> None:
        raise UserError(f"{args['model']} is no model")

    monkeypatch.setattr(locally, "build", fail)
    with pytest.raises(UserError, match="mail is no model"), locally.served("mail"):
        pass
    assert done == ["ray.init", "serve.start", "serve.shutdown", "ray.shutdown"]


def test_a_ray_that_does_not_start_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    def too_slow(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr("ray.init", too_slow)
    told = r"Ray did not start on this machine \(The current node timed out .*run the same command"
    with pytest.raises(UserError, match=told), locally.served("mail"):
        pass
    assert done == []


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("alone", [True, False])
def test_only_a_ray_without_other_applications_leaves_pandas_out(
    monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("ray.init", lambda **options: given.update(options))
    monkeypatch.setattr(locally, "build", dict)
    with locally.served("mail", alone=alone):
        pass
    preloaded = given.get("_system_config", {}).get("preload_python_modules")
    assert preloaded == (["trainyard.serving.lean_serve"] if alone else None)


def test_serve_is_imported_without_pandas_and_pandas_stays_importable() -> None:
    code = (
        "import sys, trainyard.serving.lean_serve\n"
        "from ray import serve\n"
        "assert callable(serve.run)\n"
        "assert not {'pandas', 'pyarrow'} & set(sys.modules)\n"
        "import pandas\n"
        "import trainyard.serving.lean_serve\n"
        "assert sys.modules['pandas'].DataFrame is pandas.DataFrame\n"
    )
    run_alone(code)


@pytest.mark.parametrize("alone", [True, False])
def test_messages_of_serve_stay_in_its_files(alone: bool) -> None:
    """Its import sets the level of its logger, so it comes before the block that is quiet."""
    code = (
        "import importlib, logging\n"
        "from unittest.mock import patch\n"
        "from trainyard.serving import local\n"
        "names = ('_start', '_stop', '_wait_until_ready')\n"
        "def load(*_, **__): importlib.import_module('ray.serve')\n"
        "with patch.multiple(local, **dict.fromkeys(names, load), start_ray=dict):\n"
        f"    with local.served('mail', alone={alone}):\n"
        "        assert not logging.getLogger('ray.serve').isEnabledFor(logging.INFO)\n"
        "assert logging.getLogger('ray.serve').isEnabledFor(logging.INFO)\n"
    )
    run_alone(code)


def test_checks_of_a_model_import_neither_serve_nor_transformers(tmp_path: Path) -> None:
    """Ray starts after the checks, so they must be fast."""
    model = classifier(tmp_path / "model")
    code = (
        "import sys\n"
        "from trainyard.serving.app import check_host\n"
        f"check_host({{'model': {str(model)!r}}})\n"
        "slow = {'ray.serve', 'fastapi', 'pandas', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    run_alone(code)


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
