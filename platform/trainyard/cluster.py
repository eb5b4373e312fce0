"""Ray for a run: joined or started, checked for room, left as it was found."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainyard.config import TrainConfig
from trainyard.errors import UserError


@contextlib.contextmanager
def ray_session(config: TrainConfig) -> Iterator[None]:
    """Use the Ray that this process is connected to, else join `address`, else start a local one.

    Only a Ray that was started or joined here is shut down again.

    Raises:
        UserError: when the address does not answer.
    """
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
    _check_answers(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({' '.join(str(error).split())[:160]}); check "
            "--address, RAY_ADDRESS and RAY_AUTH_MODE, or leave them out for a local Ray"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for more than a minute."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); check --address and "
            "RAY_ADDRESS, or leave them out for a local Ray"
        ) from error


def worker_resources(config: TrainConfig) -> dict[str, float]:
    """Ray resources of each worker; by default an equal share of the CPUs, and a GPU if asked.

    Ray would wait for ever for workers that the cluster can never hold, so that is refused here.

    Raises:
        UserError: saying how many workers would fit.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = {"GPU": 1.0} if config.use_gpu else {}
    if config.resources_per_worker:
        needed = {**gpu, **config.resources_per_worker}
    else:
        cpus = max(int(node.get("CPU", 0)) for node in nodes)
        while cpus > 1 and fitting(nodes, {**gpu, "CPU": cpus}) < config.num_workers:
            cpus -= 1
        needed = {**gpu, "CPU": float(max(cpus, 1))}
    room = fitting(nodes, needed)
    if room < config.num_workers:
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in needed}
        raise UserError(
            f"--num-workers {config.num_workers} with {_words(needed)} each do not fit: the cluster "
            f"has {_words(total)} on {len(nodes)} node(s), enough for {room}; use fewer workers or "
            "--resources-per-worker with less for each"
        )
    return needed


def fitting(nodes: Sequence[Mapping[str, float]], needed: Mapping[str, float]) -> int:
    """How many workers that need this much fit on the nodes, each on one of them."""
    asked = {kind: amount for kind, amount in needed.items() if amount > 0}
    return sum(
        min((int(node.get(kind, 0) / amount) for kind, amount in asked.items()), default=0)
        for node in nodes
    )


def _words(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
