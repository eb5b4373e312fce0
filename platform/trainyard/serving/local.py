"""Serve one model over HTTP on this machine, inside a `with` block."""

import contextlib
import errno
import importlib
import os
import random
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from os.path import isdir
from pathlib import Path
from typing import Any

from trainyard.cluster import start_ray
from trainyard.config import check_value
from trainyard.errors import UserError
from trainyard.models import load_config, resolve_model
from trainyard.serving.app import build, check_host, default_name
from trainyard.serving.gateway.keys import check_exposure
from trainyard.serving.options import url_host
from trainyard.terminal import quieted, stage

LEAN_SERVE = "trainyard.serving.lean_serve"
"""Module that each process of the Ray of `trainyard serve` imports first."""

READY_SECONDS = 120
"""Maximum seconds until the gateway reports that its model is ready."""

FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
"""Serve's states of a deployment whose replicas cannot start."""

MAX_PORT = 65_535
"""Largest port number."""

MIN_FREE_PORT = 20_000
"""Smallest port that is taken without being asked for. Ray's workers use those from 10002 to 19999."""

STOP_SECONDS = 30
"""Maximum seconds to wait until Serve's controller has ended."""


@contextlib.contextmanager
def served(
    source: str,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    alone: bool = False,
    **options: Any,
) -> Iterator[str]:
    """Serve a model with Ray Serve inside the block; yield its URL for `InferenceClient(url)`.

    The process's connection to Ray is used. Without one, a local Ray is started, and stopped at the
    end.

    Args:
        source: Run folder, folder of a saved model, `package:NAME/FOLDER`, or Hub id.
        port: Port of the HTTP server; None takes a free one.
        host: Address to listen on; any but the loopback address needs `keys_file` among the
            options.
        alone: Whether a Ray that is started here will hold no other application.
        options: Further fields of `HostOptions`.

    Raises:
        UserError: An option is invalid, Ray does not start, the model cannot be loaded, or the port
            is in use. Or the gateway is not ready within `READY_SECONDS`. Or other machines can
            reach `host`, and no key is required. Or the keys file cannot be read.
    """
    import ray

    args = {"model": source, **options}
    check_value("port", port, int | None)
    wanted = check_host(args, None)
    check_exposure(wanted.keys_file, host, remedy="give --keys-file, or --host 127.0.0.1")
    ours = not ray.is_initialized()
    port = _free_port(port, host, here=ours)
    if ours:  # the nodes of a running cluster may have other folders and packages
        _check_source(source)
    lean = ours and alone
    if ours:
        stage("starting Ray")
        more: dict[str, Any] = {}
        if lean:
            more["_system_config"] = {"preload_python_modules": [LEAN_SERVE]}
        start_ray(needed_next="fastapi", log_to_driver=False, logging_level="error", **more)
    url = f"http://{url_host(host)}:{port}"
    try:
        importlib.import_module(LEAN_SERVE if lean else "ray.serve")  # sets its logger's level
        with quieted("ray.serve"):  # Serve's log files have the messages
            try:
                stage(f"starting Ray Serve, and loading {source}")
                _start(args, source, host, port)
                _wait_until_ready(f"{url}/ready")
                yield f"{url}/models/{options.get('name') or default_name(source)}"
            finally:
                _stop()
    finally:
        if ours:
            ray.shutdown()


def _stop() -> None:
    """Shut Serve down without an error message in the terminal.

    `serve.shutdown` alone waits for a call to the controller. The controller ends during the call,
    so Ray reports the call as failed.
    """
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    with contextlib.suppress(RayServeException, ray.exceptions.RayActorError):  # never started
        ray.get(_get_global_client()._controller.graceful_shutdown.remote(wait=False))
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            break
        time.sleep(0.05)
    serve.shutdown()  # drops this process's client; ends a controller that is still alive


def _start(args: dict[str, Any], source: str, host: str, port: int) -> None:
    from ray import serve

    _start_serve(host, port)
    application = build(args)  # while Serve's controller starts
    try:
        serve.run(application, name="trainyard", route_prefix="/")
    except RuntimeError as error:  # Serve's error for a deployment that failed
        found = serve.status().applications.get("trainyard")
        failed = (
            [one for one in found.deployments.values() if one.status in FAILED] if found else []
        )
        reason = _last_line(failed[0].message) if failed else str(error)
        sentence = re.sub(r"^trainyard\.errors\.\w+: ", "", reason)
        raise UserError(f"{source} could not be served: {sentence}") from error


def _start_serve(host: str, port: int) -> None:
    """Start Serve unless it is running.

    Its HTTP proxy is not awaited, so models load while it starts.
    """
    from ray.serve._private.api import _create_controller_and_proxy_refs
    from ray.serve._private.client import ServeControllerClient
    from ray.serve.config import ControllerOptions
    from ray.serve.context import _get_global_client, _set_global_client

    if _get_global_client(raise_if_no_controller_running=False) is None:
        controller, _ = _create_controller_and_proxy_refs(
            {"host": host, "port": port}, None, None, None, ControllerOptions()
        )
        _set_global_client(ServeControllerClient(controller))


def _check_source(source: str) -> None:
    """Refuse a model that this machine does not find, before Ray and Serve start.

    Raises:
        UserError: There is no such folder, package or model on the Hub.
    """
    # Path.is_dir raises for a name that is too long.
    if not isdir(resolve_model(source)):  # noqa: PTH112
        load_config(source)


def _free_port(port: int | None, host: str = "127.0.0.1", *, here: bool = True) -> int:
    """Return `port` after checking that it is free on `host`, or a free port for None.

    Serve would share a port with another server that uses it.

    Args:
        port: Port number; 0 and None stand for any free port.
        host: Address to listen on.
        here: True if Serve listens on this machine, not perhaps on another node of a cluster.

    Raises:
        UserError: The port is no port number, is in use, or cannot be bound. Or `host` is no
            address of this machine.
    """
    if port is not None and not 0 <= port <= MAX_PORT:
        raise UserError(
            f"--port {port} is not a port; give a number from 1 to {MAX_PORT}, or 0 for a free port"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failure = None
    for candidate in [port] if port else _unassigned_ports():
        try:
            with socket.create_server((host, candidate), family=family) as listener:
                free: int = listener.getsockname()[1]
                return free
        except OSError as error:
            failure = error
    code = (failure and failure.errno) or 0
    if code in (errno.EADDRINUSE, errno.EACCES):
        raise UserError(
            f"--port {port or 0} cannot be used ({os.strerror(code)}); stop the other server, or give "
            "another --port"
        ) from failure
    if not here:
        return _free_port(port)
    raise UserError(
        f"--host {host} is not an address of this machine; give one of its addresses, or 0.0.0.0 for "
        "all of them"
    ) from failure


def _unassigned_ports() -> list[int]:
    """Return some ports that the kernel assigns only on request, in random order, then 0.

    The kernel assigns ports above these to Ray's processes, which start before the server does.
    """
    try:
        above = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):  # not Linux
        return [0]
    ports = range(MIN_FREE_PORT, max(above, MIN_FREE_PORT))
    return [*random.SystemRandom().sample(ports, min(len(ports), 20)), 0]


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
