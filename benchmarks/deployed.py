"""Our server deployed from a config, to be changed and hurt while it answers."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from serving_process import free_port


class Server:
    """The gateway and one model, deployed from a config as `serve run FILE` does it."""

    def __init__(self, replicas: int) -> None:
        import ray
        from ray import serve

        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
            object_store_memory=200_000_000,
        )  # fmt: skip
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 120})
        self.url = f"http://127.0.0.1:{port}/models/bench"
        self.replicas = replicas

    def deploy(self, source: str, batch_rows: int = 128) -> None:
        """Make `source` the model's version; another `batch_rows` replaces its replicas."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = {
            "applications": [
                {"name": "gateway", "route_prefix": "/", "import_path": "serve.app:gateway"},
                {
                    "name": "bench", "route_prefix": None, "import_path": "serve.app:model",
                    "args": {
                        "num_replicas": self.replicas, "num_cpus": 0.5, "batch_rows": batch_rows,
                    },
                    "deployments": [{"name": "Model", "user_config": {"source": source}}],
                },
            ]
        }  # fmt: skip
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)

    def version(self) -> str:
        """The source that answers now."""
        with urllib.request.urlopen(self.url, timeout=30) as response:
            source: str = json.load(response)["source"]
            return source

    def wait_for(self, source: str) -> float:
        """Seconds until the version answers."""

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return self.version() == source
            return False

        return until(answers, "in service")

    def serving(self) -> int:
        """Replicas of the model that answer, as far as Serve knows."""
        from ray import serve

        deployment = serve.status().applications["bench"].deployments["Model"]
        return int(deployment.replica_states.get("RUNNING", 0))

    def pids(self) -> list[int]:
        """Processes of the model's replicas."""
        return [process.pid for process in started("ServeReplica:bench:Model")]


def until(true: Callable[[], bool], what: str) -> float:
    """Seconds until something is true."""
    began = time.perf_counter()
    while not true():
        if time.perf_counter() - began > 120:
            raise SystemExit(f"the model was not {what} within 120 s")
        time.sleep(0.05)
    return time.perf_counter() - began


def replaced(server: Server, before: set[int]) -> bool:
    """Whether all of its replicas are other processes than before."""
    now = set(server.pids())
    return not before & now and len(now) == server.replicas


def started(word: str) -> list[Any]:
    """The processes that this one started, and they in turn, whose command line holds `word`."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found
