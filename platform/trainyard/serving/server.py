"""Serve one model over HTTP on this machine: `trainyard serve`, and `serve` for Python programs."""

import contextlib
import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from trainyard.config import Flags, python_function
from trainyard.models import Dtype, EngineName
from trainyard.serving.gateway.landing import banner
from trainyard.signals import ending_by_signals, wait_for_signal
from trainyard.terminal import say


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Flags):
    """Serve a model over HTTP, as the Hugging Face Inference API does, until Ctrl-C.

    Several models, replicas and API keys: `trainyard serve example` prints a configuration for
    `serve run`, and `trainyard serve check FILE` checks one.
    """

    model_name_or_path: str
    """A run, its model/ folder, a Hub id, or package:NAME/FOLDER."""
    name: str | None = None
    """Name of the model in its URL. Default: the name of its run."""
    port: int = 8000
    """Port to listen on."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's loopback needs --keys-file."""
    keys_file: str | None = None
    """YAML list of API keys, see `trainyard serve new-key`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names accepted in the header Host, such as a proxy's, without port and wildcard. Default: this
    machine's; with --keys-file, any name."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may send requests, such as https://app.example.com, or * for all."""
    engine: EngineName | None = None
    """Engine of the forward passes. Default: the one that `trainyard engine` stored, else torch."""
    dtype: Dtype = "float32"
    """Number format of the forward passes."""
    threads: int | None = None
    """Threads of a forward pass. Default: all of the machine."""


class Server:
    """Model served by this process until `stop` or the end of a `with` block.

    Attributes:
        url: Address of the model, for `InferenceClient(model=url)`.
    """

    def __init__(self, source: str, port: int | None, options: Mapping[str, Any]) -> None:
        from trainyard.serving.local import served

        self._stack = contextlib.ExitStack()
        self.url: str = self._stack.enter_context(served(source, port=port, **options))

    def stop(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"model served at {self.url}; stop() ends it"


def _options() -> set[str]:
    """Return the names that `serve` accepts as `options`."""
    from trainyard.serving.options import HostOptions

    return {"host", *HostOptions.model_fields} - {"model"}  # `source` names the model


@python_function(_options, {"model_name_or_path": "source"})
def serve(source: str, *, port: int | None = None, **options: Any) -> Server:
    """Serve a model from this process, without blocking it.

    Args:
        source: Run folder, folder of a saved model, `package:NAME/FOLDER`, or Hub id.
        port: Port of the HTTP server; None takes a free one.
        options: Further fields of `HostOptions`, and `host`, the address to listen on.

    Raises:
        UserError: An option is invalid, the model cannot be loaded, the port is in use, or the
            server is not ready in time. Or other machines can reach the address, and no key is
            required.
    """
    return Server(source, port, options)


def serve_model(config: ServeConfig) -> dict[str, Any]:
    """Serve one model until Ctrl-C or SIGTERM; return the job's result: `job`, `model` and `url`.

    Raises:
        UserError: An option is invalid, the model cannot be loaded, the port is in use, or the
            server is not ready in time. Or other machines can reach the address, and no key is
            required.
    """
    with ending_by_signals():
        return _serve_until_stopped(config)


def _serve_until_stopped(config: ServeConfig) -> dict[str, Any]:
    from trainyard.serving.local import served

    options = {
        "name": config.name,
        "engine": config.engine or "auto",
        "dtype": config.dtype,
        "threads": config.threads,
        "keys_file": config.keys_file,
        "allowed_hosts": config.allowed_hosts,
        "cors_origins": config.cors_origins,
    }
    given = {key: value for key, value in options.items() if value is not None}
    with served(
        config.model_name_or_path, port=config.port, host=config.host, alone=True, **given
    ) as url:
        base, _, name = url.partition("/models/")
        if config.keys_file:  # the example is in the model's description, which needs a key
            lines = banner(base, [name], key=True)
        else:
            with urllib.request.urlopen(url, timeout=60) as answer:
                lines = banner(base, [name], json.load(answer)["example"])
        say(f"{lines}\n  stop        Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            wait_for_signal()
    return {"job": "serve", "model": config.model_name_or_path, "url": url}
