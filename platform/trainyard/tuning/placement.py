"""What fits: resources of a trial, and how many can run at once without waiting for each other.

A trial of one worker trains in Tune's own process, which holds the worker's resources. A trial of
several starts Ray Train, which reserves all its workers in one placement group, or none: trials can
wait for room, but never hold half of it. What supervises such a trial takes no CPU at all, or a
cluster that is full of supervisors would have no room for a worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainyard.cluster import Node, share_out
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
    needed, fit = share_out(
        config,
        nodes,
        title=f"trials of --num-workers {workers}",
        groups=trials,
        size=workers,
        least=workers,
    )
    room = fit // workers
    return Placement(
        per_worker=needed,
        per_trial=needed if workers == 1 else SUPERVISOR,
        concurrent=min(room, config.max_concurrent_trials or room),
        # Ray Train sees to the labels of the workers that it starts.
        labels=(config.label_selector or {}) if workers == 1 else {},
    )
