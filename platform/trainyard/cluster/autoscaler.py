"""Nodes that an autoscaler may add to the cluster, and requests for them."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainyard.config import WorkerFlags

Node = dict[str, float]
"""Resources of one node, by Ray's names."""


def nodes_to_come(config: WorkerFlags) -> list[Node]:
    """Resources of the nodes that `ray up`'s autoscaler may add, within its limits."""
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
    """Configuration that `ray up` left on the head; None elsewhere."""
    import yaml

    path = Path("~/ray_bootstrap_config.yaml").expanduser()
    launched: dict[str, Any] | None = yaml.safe_load(path.read_text()) if path.exists() else None
    return launched


def _living_groups() -> Counter[str]:
    import ray

    labels = ((node.get("Labels") or {}) for node in ray.nodes() if node["Alive"])
    return Counter(label["ray.io/node-group"] for label in labels if "ray.io/node-group" in label)


def may_grow(config: WorkerFlags) -> bool:
    """Return whether an autoscaler may add nodes for the run."""
    return bool(nodes_to_come(config)) or grows_by_itself()


@contextmanager
def room_requested(config: WorkerFlags, needed: Mapping[str, float]) -> Iterator[None]:
    """Request room for MAX workers from the autoscaler while a run of MIN:MAX workers trains.

    Its present workers request no more than they hold. Ray keeps one such request per cluster: the
    later of two elastic runs replaces that of the other.
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
        with suppress(RayError, RuntimeError, OSError):  # a lost cluster has no request
            request_resources(bundles=[])


def grows_by_itself() -> bool:
    """Return whether KubeRay runs this head: its autoscaler's limits are not visible from here."""
    return os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1"
