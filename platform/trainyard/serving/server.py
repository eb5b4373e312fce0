"""`trainyard serve`: one model over HTTP on this machine, until Ctrl-C."""

import contextlib
import threading
from dataclasses import dataclass
from typing import Any

from trainyard.flags import Flags
from trainyard.models import Dtype, EngineName
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
    engine: EngineName | None = None
    """Engine of the forward passes. Default: the one that `trainyard engine` stored, else torch."""
    dtype: Dtype = "float32"
    """Number format of the forward passes."""
    threads: int | None = None
    """Threads of a forward pass. Default: all of the machine."""


def serve_model(config: ServeConfig) -> dict[str, Any]:
    """Serve one model until Ctrl-C or SIGTERM; returns its last URL.

    Raises:
        UserError: for a model that cannot be loaded, or a port in use.
    """
    from trainyard.serving.local import served

    options = {
        "name": config.name,
        "engine": config.engine or "auto",
        "dtype": config.dtype,
        "threads": config.threads,
    }
    given = {key: value for key, value in options.items() if value is not None}
    with served(config.model_name_or_path, port=config.port, **given) as url:
        say(f"POST {url} (Ctrl-C stops it)")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return {"job": "serve", "model": config.model_name_or_path, "url": url}
