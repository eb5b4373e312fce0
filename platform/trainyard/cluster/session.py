"""Ray for a run: joined or started, and left as it was found."""

import contextlib
import importlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from trainyard.errors import UserError
from trainyard.flags import ClusterFlags

TOKENIZERS = "transformers.models.auto.tokenization_auto"
"""What a job that tokenizes needs first: with torch 2 to 3 seconds, as Ray's processes take to start."""


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
        options["include_dashboard"] = False
        options["_system_config"] = {
            # Ray would keep as many idle processes as there are CPUs, with all that they hold: one
            # that has tokenized has half as much memory as the worker that trains.
            "num_workers_soft_limit": 0,
            # And would start as many at once. None is used: each kind of work has its environment.
            "prestart_worker_first_driver": False,
        }
    _check_answers(address)
    importing = threading.Thread(target=importlib.import_module, args=(needed_next,))
    importing.start()
    try:
        ray.init(address=address, **options)
    except Exception as error:  # a node that is too slow to start is a bare Exception
        raise UserError(_no_ray(address, error)) from error
    try:
        importing.join()  # transformers puts another module in its place at the end
        yield
    finally:
        ray.shutdown()


def _no_ray(address: str, error: Exception) -> str:
    """The sentence for a Ray that was not to be had."""
    what = " ".join(str(error).split())[:160]
    if address == "local":
        return (
            f"Ray did not start on this machine ({what}); end what keeps the machine busy or fills its "
            "memory or disk, and run the same command again"
        )
    return (
        f"no Ray cluster answers at {address} ({what}); check --address, RAY_ADDRESS and "
        "RAY_AUTH_MODE, or leave them out for a local Ray"
    )


def _check_answers(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for more than a minute."""
    if "://" in address:
        raise UserError(
            f"{address} is no address that a run can join: `ray job submit` takes the dashboard's "
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
