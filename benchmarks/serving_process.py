"""Server to measure: a separate process with its own Ray.

python benchmarks/serving_process.py ours|ours-grpc|ours-handle|batch MODEL PORT THREADS [ENGINE DTYPE GPUS]

ours-grpc and ours-handle use Serve's transports between gateway and replica instead of connections.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATHS = dict.fromkeys(("ours", "ours-grpc", "ours-handle"), "/models/bench") | {
    "batch": "/models/reference",
    "pipeline": "/models/reference",
}


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def haproxy_environment(folder: str) -> dict[str, str]:
    """Return the environment that puts Ray Serve behind HAProxy, with files in `folder`."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    }


@dataclass(frozen=True)
class Server:
    """Running server."""

    url: str
    process: "subprocess.Popen[bytes]"

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process tree, which other load hardly changes."""
        import psutil

        total = 0.0
        for process in [root := psutil.Process(self.process.pid), *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total


@contextlib.contextmanager
def running(
    kind: str,
    model: str,
    threads: int = 2,
    *,
    haproxy: bool = True,
    engine: str = "torch",
    dtype: str = "float32",
    gpus: float = 0,
) -> Iterator[Server]:
    """Start a server, yield it once it answers, and end all its processes after the block."""
    port = free_port()
    script = "reference_pipeline_server.py" if kind == "pipeline" else "serving_process.py"
    arguments = (
        [model, str(port)]
        if kind == "pipeline"
        else [kind, model, str(port), str(threads), engine, dtype, str(gpus)]
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{HERE.parent / 'platform'}:{HERE.parent}",
            "OMP_NUM_THREADS": str(threads),
            "RAY_AUTH_MODE": "disabled",
            **(haproxy_environment(folder) if haproxy else {}),
        }
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / script), *arguments],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}{PATHS[kind]}"
        try:
            _wait(url, process, Path(folder) / "log")
            yield Server(url, process)
        finally:
            _end(process, folder)


def _end(process: "subprocess.Popen[bytes]", folder: str) -> None:
    """End a server and its descendants, and HAProxy, which detaches itself."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        # HAProxy is found by its files, since it is not a descendant.
        started += [one for one in psutil.process_iter(["cmdline"]) if _names(one, f"{folder}/")]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for one in [*started, psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def _names(process: Any, text: str) -> bool:
    """Return whether the command line of a process contains `text`."""
    return any(text in part for part in process.info["cmdline"] or ())


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    request = urllib.request.Request(
        url, b'{"inputs": "hello"}', {"content-type": "application/json"}
    )
    for _ in range(600):
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(request, timeout=30).read()
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"{url} did not come up:\n{log.read_text()[-3000:]}")


def use_serve_alone(*, grpc: bool) -> None:
    """Make gateways deployed by this process send all requests through Serve."""
    from trainyard.serving.answer import Answer
    from trainyard.serving.gateway import deployment
    from trainyard.serving.gateway.discovery import ServeModels

    class Models(ServeModels):
        async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
            return await self._call(self._model(name), name, body, seconds, grpc=grpc)

    class Gateway(deployment.Gateway):
        def __init__(
            self, options: dict[str, Any], names: Sequence[str] = (), *models: Any
        ) -> None:
            super().__init__(options, names, *models)
            self._models = Models()

    deployment.Gateway = Gateway  # type: ignore[misc]


def main() -> None:
    """Deploy the server, and run until SIGTERM."""
    import ray
    from ray import serve

    kind, model, port, threads, *how = sys.argv[1:]
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port), "request_timeout_s": 120})
    if kind.startswith("ours"):
        from trainyard.serving.app import build

        if kind != "ours":
            use_serve_alone(grpc=kind == "ours-grpc")
        names = ("engine", "dtype", "num_gpus")
        options = {"model": model, "name": "bench", "threads": threads}
        application = build(options | dict(zip(names, how, strict=False)))
    else:
        from reference_batch_server import build

        application = build({"model": model, "threads": threads})
    serve.run(application, name=kind, route_prefix="/")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
