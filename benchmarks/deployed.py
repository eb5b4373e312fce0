"""Our server, deployed from a config; scenarios change or damage it under load."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from serving_process import free_port


class Server:
    """Gateway and one model, deployed from a config as by `serve run FILE`."""

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
        """Make `source` the model's version; a changed `batch_rows` replaces its replicas."""
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
        """Return the source of the version that answers."""
        with urllib.request.urlopen(self.url, timeout=30) as response:
            source: str = json.load(response)["source"]
            return source

    def wait_for(self, source: str) -> float:
        """Return the seconds until the version `source` answers."""

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return self.version() == source
            return False

        return until(answers, "in service")

    def serving(self) -> int:
        """Return the number of running replicas of the model, according to Serve."""
        from ray import serve

        deployment = serve.status().applications["bench"].deployments["Model"]
        return int(deployment.replica_states.get("RUNNING", 0))

    def pids(self) -> list[int]:
        """Return the process ids of the model's replicas."""
        return [process.pid for process in started("ServeReplica:bench:Model")]


def until(true: Callable[[], bool], what: str) -> float:
    """Wait until `true()` holds; return the seconds. `what` names the state in the error."""
    began = time.perf_counter()
    while not true():
        if time.perf_counter() - began > 120:
            raise SystemExit(f"the model was not {what} within 120 s")
        time.sleep(0.05)
    return time.perf_counter() - began


def replaced(server: Server, before: set[int]) -> bool:
    """Return whether all replicas are new processes, none of them in `before`."""
    now = set(server.pids())
    return not before & now and len(now) == server.replicas


def started(word: str) -> list[Any]:
    """List the descendants of this process whose command line contains `word`."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found
