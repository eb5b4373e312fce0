"""A model behind HTTP for as long as a block lasts: what is started, and what is told."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.small_models import classifier

from trainyard.command import parse
from trainyard.config import naming_flags
from trainyard.errors import UserError
from trainyard.models import load_config
from trainyard.serving import local as locally
from trainyard.serving.options import HostOptions
from trainyard.serving.server import ServeConfig, serve, serve_model


@pytest.fixture(autouse=True)
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of Ray and of Ray Serve, of which there is neither."""
    found: list[str] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(locally, "_wait_until_ready", lambda _: None)
    monkeypatch.setattr(locally, "load_config", lambda _: None)  # of models on the Hub

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


@pytest.mark.usefixtures("done")
def test_the_start_of_a_server_is_told_in_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locally, "build", dict)
    with locally.served("mail"):
        said = capsys.readouterr().err
    assert said == "· starting Ray\n· starting Ray Serve, and loading mail\n"


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
        "names = ('_start', '_stop', '_wait_until_ready', '_check_source')\n"
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
        f"check_host({{'model': {str(model)!r}}}, None)\n"
        "slow = {'ray.serve', 'fastapi', 'pandas', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    run_alone(code)


@pytest.mark.usefixtures("done")
def test_hosts_and_origins_are_options_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(locally, "build", options.update)

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


def test_an_open_host_needs_keys_before_anything_starts(tmp_path: Path, done: list[str]) -> None:
    absent, damaged = tmp_path / "absent.yaml", tmp_path / "damaged.yaml"
    damaged.write_text("- name: a")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, r"listens on 0\.0\.0\.0 and there are no API keys; give --keys-file"),
        ({"keys_file": str(absent)}, r"keys_file .*absent\.yaml cannot be read \(No such file"),
        ({"keys_file": str(damaged)}, r"keys_file .*damaged\.yaml is not a valid list of keys"),
    ]
    for options, sentence in cases:
        with (
            pytest.raises(UserError, match=sentence),
            locally.served("m", host="0.0.0.0", **options),
        ):
            pass
    assert done == []


def test_a_model_that_is_refused_at_once_starts_nothing(tmp_path: Path, done: list[str]) -> None:
    with (
        pytest.raises(UserError, match=r"holds no config\.json"),
        locally.served(str(tmp_path)),
    ):
        pass
    assert done == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(classifier(tmp_path_factory.mktemp("served") / "mail"))


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such model": (
        {"source": "nope"},
        "model 'nope' could not be loaded (",
        "connect to the Hub, or give --model-name-or-path a local folder that is whole",
    ),
    "package not installed": (
        {"source": "package:nope/model"},
        "model package:nope/model: the Python package 'nope' is not installed here",
        "or give --model-name-or-path a folder or a Hub id",
    ),
    "model of a wrong type": ({"source": 5}, "--model-name-or-path is 5: input should be a", "string"),
    "name too long": ({"source": "n" * 300}, "model 'nnn", "a local folder that is whole"),
    "engine": ({"engine": "opnvino"}, "--engine is 'opnvino'; it must be auto, torch, ", "'openvino'?"),
    "name": ({"name": "a b"}, "--name: 'a b' is not a model name; use up to 96 letters", "and '/'"),
    "origin": (
        {"cors_origins": ["example.com"]},
        "--cors-origins: 'example.com' is not an origin",
        "such as https://app.example.com",
    ),
    "no keys": (
        {"host": "0.0.0.0"},
        "Serve listens on 0.0.0.0 and there are no API keys",
        "; give --keys-file, or --host 127.0.0.1",
    ),
    "port of a wrong type": ({"port": "80"}, "--port is '80'; it must be an integer, not a", "text"),
    "port out of range": ({"port": 70_000}, "--port 70000 is not a port; give a number", "free port"),
}  # fmt: skip
"""Arguments of `serve`, and begin and end of the sentence of the command."""


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda name: name.replace(" ", "-"))
def test_a_mistake_is_refused_before_anything_starts(
    mistake: str, model: str, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locally, "load_config", load_config)
    given, begin, end = MISTAKES[mistake]
    given = {"source": model} | given
    with naming_flags(), pytest.raises(UserError) as refused:
        serve(**given)
    sentence = str(refused.value)
    assert sentence.startswith(begin)
    assert sentence.endswith(end)
    with pytest.raises(UserError) as refused:
        serve(**given)
    keywords = {
        "--model-name-or-path": "source", "--host 127.0.0.1": "host='127.0.0.1'",
        "--port 70000": "port=70000", "--keys-file": "keys_file", "--cors-origins": "cors_origins",
        "--engine": "engine", "--name": "name", "--port": "port",
    }  # fmt: skip
    for flag, keyword in keywords.items():
        sentence = sentence.replace(flag, keyword)
    assert str(refused.value) == sentence
    assert done == []


@pytest.fixture
def listening() -> Iterator[tuple[str, int]]:
    """An address of this machine other than 127.0.0.1, and a port that is in use there."""
    with socket.create_server(("127.0.0.2", 0)) as listener:
        yield listener.getsockname()


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_a_port_is_checked_on_the_address_to_listen_on(
    host: str, listening: tuple[str, int], tmp_path: Path, model: str, done: list[str]
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("[]")
    options: dict[str, Any] = {"host": host, "keys_file": str(keys)}
    port = listening[1]
    sentence = (
        f"^port={port} cannot be used .Address already in use.; stop the other server, or give "
    )
    with pytest.raises(UserError, match=sentence + "another port$"):
        serve(model, port=port, **options)
    flags = ["--model-name-or-path", model, "--host", host, "--keys-file", str(keys)]
    sentence = f"^--port {port} cannot be used .*, or give another --port$"
    with naming_flags(), pytest.raises(UserError, match=sentence):
        serve_model(parse(ServeConfig, [*flags, "--port", str(port)]))
    assert done == []
    assert locally._free_port(port) == port


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid", "2001:db8::1"])
def test_an_address_of_another_machine_can_be_that_of_a_cluster_only(host: str) -> None:
    with pytest.raises(UserError, match=f"^--host {host} is not an address of this machine; give"):
        locally._free_port(0, host)
    port = locally._free_port(None)
    assert locally._free_port(port, host, here=False) == port


def test_a_model_on_the_nodes_of_a_running_cluster_is_not_looked_for_here(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(locally, "build", dict)
    with serve("package:nope/model"):
        pass
    assert done == ["serve.start", "serve.run", "serve.shutdown"]


@pytest.mark.usefixtures("done")
def test_an_error_of_a_replica_is_its_sentence_without_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Deploying application trainyard failed")

    message = (
        "Traceback\n  File x\ntrainyard.errors.UserError: model acme/mail: there are no weights\n"
    )
    failed = SimpleNamespace(status="DEPLOY_FAILED", message=message)
    app = SimpleNamespace(deployments={"Model": failed})
    monkeypatch.setattr(locally, "build", dict)
    monkeypatch.setattr("ray.serve.run", fail)
    monkeypatch.setattr(
        "ray.serve.status", lambda: SimpleNamespace(applications={"trainyard": app})
    )
    sentence = "^acme/mail could not be served: model acme/mail: there are no weights$"
    with pytest.raises(UserError, match=sentence), locally.served("acme/mail"):
        pass
