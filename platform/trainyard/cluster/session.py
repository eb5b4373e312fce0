"""Join or start Ray for a run, and leave it as it was found."""

import contextlib
import importlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from trainyard.config import ClusterFlags
from trainyard.errors import UserError, one_line

TOKENIZERS = "transformers.models.auto.tokenization_auto"
"""Module that a tokenizing job needs first; its import takes 2 to 3 seconds, like Ray's start."""


@contextlib.contextmanager
def ray_session(config: ClusterFlags, needed_next: str = "ray") -> Iterator[None]:
    """Use the Ray that this process is connected to, else join `address`, else start a local one.

    Only a Ray that was started or joined here is shut down again. While it starts, another thread
    imports the module that is `needed_next`, which must have nothing to do with Ray's own.

    Raises:
        UserError: when the address does not answer, or no local Ray starts.
    """
    # Ray starts itself when a call finds it shut down, and a thread may still call: not in a run.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    # `log_to_driver` off: the workers' logs would drown the one progress bar. They stay in files.
    options: dict[str, Any] = {"log_to_driver": config.verbose}
    if not config.verbose:
        options["logging_level"] = logging.ERROR
    if address == "local":
        options["_system_config"] = {
            # Ray would keep an idle process for each CPU, with its memory: a process that has
            # tokenized holds half the memory of the worker that trains.
            "num_workers_soft_limit": 0,
            # It would also start them in advance. Each kind of work has another environment.
            "prestart_worker_first_driver": False,
        }
    _check_answers(address)
    importing = threading.Thread(target=importlib.import_module, args=(needed_next,))
    importing.start()
    try:
        start_ray(address, **options)
    except Exception as error:  # a node that is too slow to start is a bare Exception
        raise UserError(_no_ray(address, error)) from error
    try:
        importing.join()  # transformers puts another module in its place at the end
        yield
    finally:
        ray.shutdown()


def start_ray(address: str = "local", **options: Any) -> None:
    """Call `ray.init`; a local Ray starts without the processes that no job of ours needs.

    They are the dashboard's, the autoscaler's monitor, and the one that follows the workers' logs for the
    terminal. `ray.init` would wait for the first, which only reports usage when there is no dashboard.
    """
    import ray
    from ray._private import node

    class LeanNode(node.Node):
        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

        def start_monitor(self) -> None:
            pass

        def start_log_monitor(self) -> None:
            if options.get("log_to_driver"):
                super().start_log_monitor()

    if address != "local":
        ray.init(address=address, **options)
        return
    whole, node.Node = node.Node, LeanNode
    try:
        ray.init(address=address, include_dashboard=False, **options)
    finally:
        node.Node = whole


def _no_ray(address: str, error: Exception) -> str:
    reason = one_line(error, 160)
    if address == "local":
        return (
            f"Ray did not start on this machine ({reason}); end what keeps the machine busy or fills its "
            "memory or disk, and run the same command again"
        )
    return (
        f"no Ray cluster answers at {address} ({reason}); check --address, RAY_ADDRESS and "
        "RAY_AUTH_MODE, or leave them out for a local Ray"
    )


def _check_answers(address: str) -> None:
    """Refuse an address without a listener: Ray itself would retry for more than a minute."""
    if "://" in address:
        raise UserError(
            f"a run cannot join {address}: `ray job submit` takes the dashboard's "
            "(http://HEAD:8265), --address and RAY_ADDRESS here take HEAD:6379, or leave them out "
            "for a local Ray"
        )
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); check --address and "
            "RAY_ADDRESS, or leave them out for a local Ray"
        ) from error


def owns_gpu() -> bool:
    """Return whether Ray reserved a GPU for this process; outside Ray a process may use any.

    Ray no longer hides the GPUs from processes that asked for none.
    """
    import ray

    return not ray.is_initialized() or bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])
