"""The workers, started for real: they meet over the network as in training, and add up a number."""

import os
import shutil
import uuid
from typing import Any

from trainyard.cluster import Node, build_trainer, worker_count
from trainyard.config import TrainConfig
from trainyard.doctor.cluster.checks import Finding
from trainyard.storage import open_run


def meet(config: TrainConfig, needed: Node) -> Finding:
    """Whether as many workers as would train can start and reach each other, on the asked devices."""
    import ray.train

    count = worker_count(config, needed, attempt=1)
    run = open_run(config.storage_path, f".doctor-{uuid.uuid4().hex}")
    trainer = build_trainer(
        config,
        add_up,
        count,
        needed,
        run.path.parent,
        name=run.path.name,
        timeout_seconds=60,
        max_failures=0,
        controller_failure_limit=0,
    )
    try:
        met: dict[str, Any] = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        reason = " ".join(str(error).split())[-300:]
        return Finding(
            "workers",
            "failure",
            f"{count} worker(s) could not be started or not reach each other ({reason}): open the "
            "ports between the nodes, or set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the interface",
        )
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
    where = f"{met['backend']} over {met['interface']} on {met['device']}"
    if met["sum"] != count:
        return Finding("workers", "failure", f"{count} workers added up to {met['sum']} by {where}")
    return Finding("workers", "ok", f"{count} worker(s) met and added up by {where}")


def add_up() -> dict[str, Any]:
    """Rank 0's view of an all-reduce of ones; runs on each worker."""
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    device = ray.train.torch.get_device()
    ones = torch.ones((), device=device)
    backend = "one process"
    if ray.train.get_context().get_world_size() > 1:
        dist.all_reduce(ones)
        backend = dist.get_backend()
    if device.type == "cuda":
        version = ".".join(map(str, torch.cuda.nccl.version()))
        backend += f" (NCCL {version}, CUDA {torch.version.cuda})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    return {"sum": ones.item(), "backend": backend, "interface": interface, "device": name}
