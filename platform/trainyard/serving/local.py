"""Serve one model over HTTP on this machine, inside a `with` block."""

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from trainyard.errors import UserError
from trainyard.serving.app import build, default_name
from trainyard.serving.options import MODEL

READY_SECONDS = 120


@contextlib.contextmanager
def served(source: str, *, port: int | None = None, **options: Any) -> Iterator[str]:
    """Serve a model on 127.0.0.1 by Ray Serve; yields its URL, as `InferenceClient(url)` takes it.

    It uses the Ray that this process is connected to, or starts a local one and stops it again.

    Args:
        source: run folder, folder of a saved model, or Hub id.
        port: of the HTTP server; by default one that is free.
        options: as for `serve run trainyard.serving.app:build`.

    Raises:
        UserError: when the model cannot be loaded.
    """
    import ray
    from ray import serve

    application = build({"model": source, **options})
    ours = not ray.is_initialized()
    if ours:
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, logging_level="error"
        )
    port = port or _free_port()
    url = f"http://127.0.0.1:{port}"
    try:
        _start(application, source, port)
        _wait_until_ready(f"{url}/ready")
        yield f"{url}/models/{options.get('name') or default_name(source)}"
    finally:
        serve.shutdown()
        if ours:
            ray.shutdown()


def _start(application: Any, source: str, port: int) -> None:
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(application, name="trainyard", route_prefix="/")
    except RuntimeError as error:  # Serve's error for a deployment that failed
        failed = serve.status().applications.get("trainyard")
        deployment = failed and failed.deployments.get(MODEL)
        reason = _last_line(deployment.message) if deployment else error
        raise UserError(f"{source} could not be served: {reason}") from error


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{url} was not ready within {READY_SECONDS} s; see the logs of Ray Serve"
                ) from None
            time.sleep(0.1)


def _last_line(message: str) -> str:
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "see the logs of Ray Serve"
