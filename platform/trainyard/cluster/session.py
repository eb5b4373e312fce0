"""Connect to Ray for a job, and shut down only the connection or cluster that the job started."""

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from trainyard.cluster.imports import without_collection
from trainyard.config import ClusterFlags
from trainyard.errors import Interrupted, UserError, one_line

TOKENIZERS = "transformers.models.auto.tokenization_auto"
"""Slow module that a job needs for tokenizing; `ray_session` imports it while Ray starts."""


@contextlib.contextmanager
def ray_session(config: ClusterFlags, needed_next: str = "ray") -> Iterator[None]:
    """Connect to Ray: reuse this process's connection, else join a cluster, else start a local one.

    The address to join is --address, else RAY_ADDRESS. At exit, shut down only what was started or
    joined here.

    Args:
        config: Flags with the address.
        needed_next: Module, independent of Ray, to import in a thread while Ray starts.

    Raises:
        UserError: The address is a URL or does not answer, or the local cluster does not start.
    """
    # Otherwise Ray would start again when a remaining thread calls it after the shutdown.
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
            # Prestarted processes are useless: each kind of work needs a different environment.
            "prestart_worker_first_driver": False,
        }
    _check_answers(address)
    start_ray(address, needed_next, **options)
    try:
        yield
    finally:
        ray.shutdown()


def _import(name: str) -> None:
    with without_collection():
        importlib.import_module(name)


def start_ray(address: str = "local", needed_next: str = "ray", **options: Any) -> None:
    """Call `ray.init`; start a local Ray without processes that no job needs.

    The omitted processes are the API server, the autoscaler's monitor and, without `log_to_driver`,
    the log monitor. Without a dashboard the API server only reports usage, and `ray.init` waits for
    it. Signals to the process group of this process do not reach a local Ray. A handler of SIGTERM
    that the process has installed stays.

    Args:
        address: "local" to start a cluster, else the address of a running one.
        needed_next: Module, independent of Ray, to import in a thread while Ray starts.
        options: Further arguments of `ray.init`.

    Raises:
        UserError: The local cluster does not start, or the address does not answer.
        Interrupted: A signal asked to stop meanwhile.
    """
    import ray

    importing = threading.Thread(target=_import, args=(needed_next,))
    importing.start()
    processes: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if address == "local":
        processes = _own_processes(log_monitor=bool(options.get("log_to_driver")))
        options = {"include_dashboard": False, **options}
    try:
        with processes, _kept_handler():
            ray.init(address=address, **options)
    except Interrupted:
        raise
    except Exception as error:  # a slow start of a node raises a plain Exception
        raise UserError(_no_ray(address, error)) from error
    finally:
        importing.join()  # the import ends by replacing the module object


@contextlib.contextmanager
def _own_processes(*, log_monitor: bool) -> Iterator[None]:
    """Make a Ray that starts inside the block lean, with processes outside this process's group.

    `timeout` and Ctrl-C signal the whole group. Ray would end at once, and the workers could not
    save. Ray's processes still end with this process: the kernel kills them (PR_SET_PDEATHSIG).

    Args:
        log_monitor: True to start Ray's log monitor.
    """
    from ray._private import node, services

    class LeanNode(node.Node):
        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

        def start_monitor(self) -> None:
            pass

        def start_log_monitor(self) -> None:
            if log_monitor:
                super().start_log_monitor()

    class OwnGroup(services.ConsolePopen):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, process_group=0, **options)

    before = node.Node, services.ConsolePopen
    node.Node, services.ConsolePopen = LeanNode, OwnGroup
    try:
        yield
    finally:
        node.Node, services.ConsolePopen = before


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Keep the process's handler of SIGTERM, if it has one, while Ray starts inside the block.

    Ray's own handler would end the process without a word, and with another status.
    """
    from ray._private import utils

    handler, replace = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or handler in (signal.SIG_DFL, None):
        yield
        return
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = replace
        signal.signal(signal.SIGTERM, handler)  # Ray's C++ core has its own handler, too


def check_local_ray() -> None:
    """Check that the Ray that this process started is alive; a call to a dead one never returns.

    A process that started no Ray passes.

    Raises:
        UserError: The raylet or the GCS server has ended.
    """
    from ray._private import worker

    node = worker._global_node
    dead = [] if node is None else [name for name, _ in node.dead_processes()]
    if lost := [name for name in ("raylet", "gcs_server") if name in dead]:
        raise UserError(
            f"Ray on this machine has ended: its {lost[0]} process was killed, perhaps because memory "
            "was full; run the same command again to resume"
        )


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
    """Refuse an address without a listener, for which Ray would retry for more than a minute.

    Raises:
        UserError: The address is a URL, or no connection to it opens within 10 seconds.
    """
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
    """Return whether this process may use a GPU: Ray reserved one, or Ray is not in use.

    Processes must check this, since Ray does not hide GPUs from processes that reserved none.
    """
    import ray

    return not ray.is_initialized() or bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])
