"""Gateway over hosts in this process, behind a real uvicorn: HTTP without a cluster."""

import contextlib
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from trainyard.serving.answer import Answer
from trainyard.serving.gateway.http import GatewayMetrics, build_gateway
from trainyard.serving.gateway.keys import KeyRing
from trainyard.serving.options import GatewayOptions, ModelOptions, Version
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import ReplicaMetrics


def load(source: Path, **options: Any) -> Host:
    return Host.load(
        Version(source=str(source)), ModelOptions(threads=1, **options), ReplicaMetrics()
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class LocalModels:
    """Implement `Models` with hosts in this process."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts = hosts

    def names(self) -> list[str]:
        return sorted(self.hosts)

    def waiting_for(self) -> list[str]:
        return []

    def loading(self) -> dict[str, str]:
        return {}

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        return await self.hosts[name].answer(body, seconds)

    def stream(self, name: str, body: bytes, seconds: float) -> AsyncGenerator[Answer | bytes]:
        return self.hosts[name].stream(body, seconds)

    async def describe(self, name: str) -> dict[str, Any]:
        return self.hosts[name].describe()


@contextlib.contextmanager
def serving(
    models: Any,
    options: GatewayOptions | None = None,
    keys: KeyRing | None = None,
    metrics: GatewayMetrics | None = None,
) -> Iterator[str]:
    """Run a gateway until the block ends; yield its URL."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            build_gateway(models, options or GatewayOptions(), keys or KeyRing(None), metrics),
            log_level="warning",
            lifespan="off",
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
