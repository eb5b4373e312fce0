"""torch's process group of the workers, for a controller of Ray Train that does not import torch.

Ray's `TorchConfig` imports torch where it is unpickled, which delays the controller, and so every
worker, by more than a second. Ray's functions are therefore imported in the workers.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.ray_constants import env_integer
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import (
    DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
)
from ray.train.v2._internal.util import TrainingFramework

from trainyard.cluster.imports import without_collection

log = logging.getLogger(__name__)


@dataclass
class GroupConfig(BackendConfig):
    """Process group over the network interface of Ray; replaces Ray's `TorchConfig`.

    Attributes:
        backend: torch's backend of the group.
        timeout_seconds: Timeout of the group's operations, in seconds.
    """

    backend: str
    timeout_seconds: int

    @property
    def backend_cls(self) -> type[Backend]:
        """Backend of Ray Train that forms and ends the group."""
        return GroupBackend

    @property
    def train_func_context(self) -> Any:
        """Context manager in which each worker runs its function."""
        return _on_device

    @property
    def framework(self) -> TrainingFramework:
        """Framework in the records of Ray Train."""
        return TrainingFramework.TORCH


class GroupBackend(Backend):
    """Form and end the group, as Ray's `_TorchBackend` does."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Connect all workers."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        count = len(worker_group)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config, rank, count, address, port
            )
            for rank in range(count)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Disconnect all workers; leave those that do not answer in time."""
        del backend_config
        left = worker_group.execute_async(_leave, several=len(worker_group) > 1)
        seconds = env_integer(
            TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
        )
        try:
            ray.get(left, timeout=seconds)
        except GetTimeoutError:
            log.warning("the process group did not end within %d seconds", seconds)


def _join(config: GroupConfig, rank: int, count: int, address: str, port: int) -> None:
    with without_collection():
        from ray.train.torch import config as ray_torch

    name_interface()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    ray_torch._set_torch_distributed_env_vars()
    ray_torch._setup_torch_process_group(
        config.backend, rank, count, "env://", config.timeout_seconds
    )


def _leave(*, several: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=several)


@contextmanager
def _on_device() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


def name_interface() -> str | None:
    """Set unset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface of this node's address.

    By default gloo and NCCL resolve the host's name. Debian resolves it to 127.0.1.1, which no
    other host can reach.

    Returns:
        Name of the interface that has Ray's address of this node; None if no interface has it.
    """
    import psutil
    import ray.util

    address = ray.util.get_node_ip_address()
    name: str
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return name
    return None
