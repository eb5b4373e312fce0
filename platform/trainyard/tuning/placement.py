"""What fits: resources of a trial, and how many can run at once without waiting for each other.

A trial of one worker trains in Tune's own process, which holds the worker's resources. A trial of
several starts Ray Train, which reserves all its workers in one placement group, or none: trials can
wait for room, but never hold half of it. What supervises such a trial takes no CPU at all, or a
cluster that is full of supervisors would have no room for a worker.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainyard.cluster import Node, fitting
from trainyard.errors import UserError
from trainyard.tuning.config import SweepConfig

SUPERVISOR = {"node:__internal_head__": 0.001}
"""Ray refuses to reserve nothing; this is on every cluster, and is no CPU."""


@dataclass(frozen=True)
class Placement:
    """Where trials run."""

    per_worker: Mapping[str, float]
    """Resources of each training process."""
    per_trial: Mapping[str, float]
    """Resources of the process that Tune starts for a trial."""
    concurrent: int
    """Trials at once."""
    labels: Mapping[str, str]
    """What the node of that process must be labeled with."""


def place(config: SweepConfig, trials: int, nodes: list[Node]) -> Placement:
    """Share the nodes out over trials: as many at once as there are trials, then more CPUs for each.

    Raises:
        UserError: when not even one trial fits, saying what there is.
    """
    (workers,) = config.worker_counts
    gpu = {"GPU": 1.0} if config.use_gpu else {}
    if config.resources_per_worker:
        needed = {**gpu, **config.resources_per_worker}
    else:
        needed = {**gpu, "CPU": 1.0}
        wanted = min(trials, fitting(nodes, needed) // workers)
        while wanted and fitting(nodes, {**needed, "CPU": needed["CPU"] + 1}) // workers >= wanted:
            needed["CPU"] += 1
    room = fitting(nodes, needed) // workers
    if room < 1:
        words = " and ".join(f"{amount:g} {kind}" for kind, amount in needed.items())
        total = " and ".join(
            f"{math.fsum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in needed
        )
        labels = f" with labels {config.label_selector}" if config.label_selector else ""
        raise UserError(
            f"a trial of --num-workers {workers} with {words} each does not fit: the cluster has "
            f"{total} on {len(nodes)} node(s){labels}; use fewer workers or --resources-per-worker with "
            "less"
        )
    return Placement(
        per_worker=needed,
        per_trial=needed if workers == 1 else SUPERVISOR,
        concurrent=min(room, config.max_concurrent_trials or room),
        # Ray Train sees to the labels of the workers that it starts.
        labels=(config.label_selector or {}) if workers == 1 else {},
    )
