"""Number and resources of the workers that fit on a cluster, now and after nodes join or leave."""

import sys
import time
from collections.abc import Mapping, Sequence

from trainyard.cluster.autoscaler import Node, grows_by_itself, nodes_to_come
from trainyard.config import WorkerFlags
from trainyard.errors import UserError

RELEASE_SECONDS = 10.0
"""Maximum seconds to wait until the resources of a lost attempt are free."""


def share_out(
    config: WorkerFlags,
    nodes: Sequence[Node],
    *,
    title: str,
    groups: int = sys.maxsize,
    size: int = 1,
    least: int = 1,
    growing: bool = False,
) -> tuple[Node, int]:
    """Choose the resources of each worker, for up to `groups` groups that run at the same time.

    --resources-per-worker is used unchanged. Otherwise each worker gets the most CPUs that do not
    reduce the number of groups that fit, compared with one CPU each.

    Args:
        config: Flags that describe a worker.
        nodes: Resources of each node; a worker runs on one node.
        title: Plural subject of the error sentence.
        groups: Maximum number of groups to make room for.
        size: Workers in a group.
        least: Minimum number of workers that must fit.
        growing: True if the cluster may add nodes that are not in `nodes`; no error is raised then.

    Returns:
        Resources of a worker, and the number of workers that fit on `nodes`.

    Raises:
        UserError: Fewer than `least` workers fit, and `growing` is False.
    """
    gpu = {"GPU": 1.0} if config.use_gpu else {}
    needed = {**gpu, **(config.resources_per_worker or {"CPU": 1.0})}
    wanted = min(groups, fitting(nodes, needed) // size)
    while (
        not config.resources_per_worker
        and wanted * size >= least
        and fitting(nodes, {**needed, "CPU": needed["CPU"] + 1}) // size >= wanted
    ):
        needed["CPU"] += 1
    room = fitting(nodes, needed)
    if room < least and not growing:
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in needed}
        largest = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in needed}
        labels = f" with labels {dict(config.node_labels)}" if config.node_labels else ""
        on_one = f", at most {_words(largest)} on one" if len(nodes) > 1 and not room else ""
        raise UserError(
            f"{title} with {_words(needed)} each do not fit: the cluster has {_words(total)} on "
            f"{len(nodes)} node(s){labels}{on_one}, enough for {room}; use fewer workers or "
            "--resources-per-worker with less for each"
        )
    return needed, room


def worker_resources(config: WorkerFlags) -> Node:
    """Return the Ray resources of each worker of one run: by default an equal share of the CPUs.

    --use-gpu adds one GPU. Nodes that an autoscaler may add count as available. Workers that can
    never fit are an error, since Ray would wait for them endlessly.

    Raises:
        UserError: The smallest allowed number of workers does not fit, and no KubeRay autoscaler
            could add nodes.
    """
    counts = config.worker_counts
    needed, _ = share_out(
        config,
        nodes_within_reach(config),
        title=f"--num-workers {config.num_workers}",
        groups=counts[-1],
        least=counts[0],
        growing=grows_by_itself(),
    )
    return needed


def worker_count(config: WorkerFlags, needed: Node, *, attempt: int) -> int:
    """Return the largest allowed number of workers that fit on free resources, else the smallest.

    Wait up to RELEASE_SECONDS for resources to become free. Attempt 0 also counts the nodes that an
    autoscaler may add. A fixed --num-workers is returned at once.

    Args:
        config: Flags with the allowed worker counts.
        needed: Resources of one worker.
        attempt: Number of the attempt at the run, from 0.
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
    """Return the number of workers with `needed` resources that fit, each worker on one node."""
    requested = {kind: amount for kind, amount in needed.items() if amount > 0}
    return sum(
        min((int(node.get(kind, 0) / amount) for kind, amount in requested.items()), default=0)
        for node in nodes
    )


def greatest_count(counts: list[int], room: int) -> int:
    """Return the largest of the ascending `counts` that is at most `room`, else the smallest."""
    return max((count for count in counts if count <= room), default=counts[0])


def nodes_for(config: WorkerFlags, *, free: bool = False) -> list[Node]:
    """Return the resources of each node that workers may run on; draining nodes are left out.

    Nodes must have the labels of `config`. With `free`, only unreserved resources count.
    """
    import ray
    from ray._private.state import available_resources_per_node, state

    leaving = state.get_draining_nodes()
    wanted = config.node_labels.items()
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


def nodes_within_reach(config: WorkerFlags) -> list[Node]:
    """Return the resources of the nodes of `nodes_for`, and of those that `ray up` may add."""
    return [*nodes_for(config), *nodes_to_come(config)]


def _words(resources: Node) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
