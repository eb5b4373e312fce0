"""Nodes that an autoscaler may add to the cluster, and resource requests to the autoscaler."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainyard.config import WorkerFlags

Node = dict[str, float]
"""Amounts of a node's or a worker's resources, by Ray's resource names."""


def nodes_to_come(config: WorkerFlags) -> list[Node]:
    """Return the resources of each node that the autoscaler of `ray up` may still add.

    Only node types with the labels of `config` count. The list is empty where `ray up` did not
    start the cluster.
    """
    launched = _launched()
    if launched is None:
        return []
    living = _living_groups()
    groups = {
        name: group
        for name, group in launched["available_node_types"].items()
        if name != launched["head_node_type"]
    }
    wanted = config.node_labels.items()
    come = [
        {kind: float(amount) for kind, amount in group.get("resources", {}).items()}
        for name, group in groups.items()
        if wanted <= (group.get("labels") or {}).items()
        for _ in range(group.get("max_workers", 0) - living[name])
    ]
    return come[: max(0, launched["max_workers"] - sum(living[name] for name in groups))]


def _launched() -> dict[str, Any] | None:
    """Return the cluster configuration that `ray up` stores on the head node; None elsewhere."""
    import yaml

    path = Path("~/ray_bootstrap_config.yaml").expanduser()
    launched: dict[str, Any] | None = yaml.safe_load(path.read_text()) if path.exists() else None
    return launched


def _living_groups() -> Counter[str]:
    import ray

    labels = ((node.get("Labels") or {}) for node in ray.nodes() if node["Alive"])
    return Counter(label["ray.io/node-group"] for label in labels if "ray.io/node-group" in label)


def may_grow(config: WorkerFlags) -> bool:
    """Return whether an autoscaler may add nodes with the labels of `config`; True in KubeRay."""
    return bool(nodes_to_come(config)) or grows_by_itself()


@contextmanager
def room_requested(config: WorkerFlags, needed: Mapping[str, float]) -> Iterator[None]:
    """Request resources for MAX workers from the autoscaler while a run of MIN:MAX workers trains.

    Without the request, Ray Train asks only for the workers it starts. Ray keeps one request per
    cluster: of two elastic runs, the later one replaces the other's request. A fixed worker count,
    or a cluster without an autoscaler, needs no request.

    Args:
        config: Flags with the worker counts and node labels.
        needed: Resources of one worker.
    """
    counts, labels = config.worker_counts, config.node_labels
    if len(counts) == 1 or not (_launched() or grows_by_itself()):
        yield
        return
    from ray.autoscaler.sdk import request_resources
    from ray.exceptions import RayError

    bundles = [dict(needed)] * counts[-1]
    request_resources(
        bundles=bundles, bundle_label_selectors=[dict(labels)] * counts[-1] if labels else None
    )
    try:
        yield
    finally:
        with suppress(RayError, RuntimeError, OSError):  # a lost cluster keeps no request
            request_resources(bundles=[])


def grows_by_itself() -> bool:
    """Return whether KubeRay manages the head node; its autoscaler's limits are unknown here."""
    return os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1"
