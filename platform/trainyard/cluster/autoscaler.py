"""What an autoscaler may add to the cluster, and how a run asks it for more."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainyard.flags import WorkerFlags

Node = dict[str, float]
"""Resources of one node, by Ray's names."""


def nodes_to_come(config: WorkerFlags) -> list[Node]:
    """What `ray up`'s autoscaler may add: up to each group's limit, and the cluster's over all."""
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
    """What the cluster was launched from, where `ray up` left it on the head."""
    import yaml

    path = Path("~/ray_bootstrap_config.yaml").expanduser()
    found: dict[str, Any] | None = yaml.safe_load(path.read_text()) if path.exists() else None
    return found


def _living_groups() -> Counter[str]:
    """How many living nodes each group of the cluster has."""
    import ray

    labels = ((node.get("Labels") or {}) for node in ray.nodes() if node["Alive"])
    return Counter(label["ray.io/node-group"] for label in labels if "ray.io/node-group" in label)


def may_grow(config: WorkerFlags) -> bool:
    """Whether an autoscaler may add nodes for the run."""
    return bool(nodes_to_come(config)) or grows_by_itself()


@contextmanager
def room_asked_for(config: WorkerFlags, needed: Mapping[str, float]) -> Iterator[None]:
    """While a run of MIN:MAX workers goes on, the autoscaler is asked for room for MAX of them.

    Its workers alone would ask for no more than there are. Ray keeps one such wish for a cluster: of
    two elastic runs the later one's counts.
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
        with suppress(RayError, RuntimeError, OSError):  # without the cluster there is no wish
            request_resources(bundles=[])


def grows_by_itself() -> bool:
    """Whether KubeRay runs this head: what its autoscaler may add cannot be asked for from here."""
    return os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1"
