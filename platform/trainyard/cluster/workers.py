"""How many workers, of what size, a cluster can hold: now, and as nodes come and go."""

import time
from collections.abc import Mapping, Sequence

from trainyard.cluster.autoscaler import Node, grows_by_itself, nodes_to_come
from trainyard.config import TrainConfig
from trainyard.errors import UserError

RELEASE_SECONDS = 10.0
"""How long the cluster may take to free what a lost attempt had occupied."""


def worker_resources(config: TrainConfig) -> Node:
    """Ray resources of each worker; by default an equal share of the CPUs, and a GPU if asked.

    Ray would wait for ever for workers that the cluster can never hold, so that is refused here.

    Raises:
        UserError: saying how many workers would fit.
    """
    nodes = [*nodes_for(config), *nodes_to_come(config)]
    gpu = {"GPU": 1.0} if config.use_gpu else {}
    if config.resources_per_worker:
        needed = {**gpu, **config.resources_per_worker}
    else:
        needed = {**gpu, "CPU": 1.0}
        possible = min(fitting(nodes, needed), config.worker_counts[-1])
        if possible >= config.worker_counts[0]:
            needed["CPU"] = float(int(max(node.get("CPU", 0) for node in nodes)))
            while fitting(nodes, needed) < possible:
                needed["CPU"] -= 1
    room = fitting(nodes, needed)
    if room < config.worker_counts[0] and not grows_by_itself():
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in needed}
        labels = f" with labels {config.label_selector}" if config.label_selector else ""
        raise UserError(
            f"--num-workers {config.num_workers} with {_words(needed)} each do not fit: the cluster "
            f"has {_words(total)} on {len(nodes)} node(s){labels}, enough for {room}; use fewer "
            "workers or --resources-per-worker with less for each"
        )
    return needed


def worker_count(config: TrainConfig, needed: Node, *, attempt: int) -> int:
    """How many workers to start: of the allowed numbers, the greatest that the cluster can hold.

    The first attempt counts on what an autoscaler may add, later ones on what is free.
    """
    counts = config.worker_counts
    if len(counts) == 1:
        return counts[0]
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        free, total = (fitting(nodes_for(config, free=one), needed) for one in (True, False))
        if free >= min(total, counts[-1]) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if attempt == 0:
        free += fitting(nodes_to_come(config), needed)
    return greatest_count(counts, free)


def fitting(nodes: Sequence[Mapping[str, float]], needed: Mapping[str, float]) -> int:
    """How many workers of `needed` resources the nodes hold, each on one node."""
    asked = {kind: amount for kind, amount in needed.items() if amount > 0}
    return sum(
        min((int(node.get(kind, 0) / amount) for kind, amount in asked.items()), default=0)
        for node in nodes
    )


def greatest_count(counts: list[int], room: int) -> int:
    """The largest of `counts` that `room` holds, or the smallest when none fits."""
    return max((count for count in counts if count <= room), default=counts[0])


def nodes_for(config: TrainConfig, *, free: bool = False) -> list[Node]:
    """What each node has that workers may run on, or what is free of it."""
    import ray
    from ray._private.state import available_resources_per_node, state

    leaving = state.get_draining_nodes()
    wanted = (config.label_selector or {}).items()
    nodes = {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] not in leaving
        and wanted <= (node.get("Labels") or {}).items()
    }
    if free:
        available = available_resources_per_node()
        nodes = {name: available.get(name, {}) for name in nodes}
    return list(nodes.values())


def _words(resources: Node) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
