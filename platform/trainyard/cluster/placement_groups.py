"""Placement groups whose maker is dead: given back, so that a lost trial cannot block the sweep.

Ray Train reserves its workers by a placement group of its controller, an actor. When that is killed
together with its trial, the group lives on as long as the job does. Ray Train's own cleaner asks the
State API, which needs the dashboard and fails with two Rays on one host; this asks the GCS, which is
always there.
"""

import logging
import time

log = logging.getLogger(__name__)


def release_orphans(patience: float = 0.0) -> None:
    """Remove this job's placement groups that were made by an actor that is dead.

    Groups whose maker is still alive get `patience` seconds: it may be ending, and remove them
    itself, or it may have been killed a moment ago, and not be known to be dead yet.
    """
    from ray.util.placement_group import remove_placement_group

    deadline = time.monotonic() + patience
    while True:
        groups = _groups_of_actors()
        for group, orphaned in groups:
            if orphaned:
                remove_placement_group(group)
                log.warning("released the placement group of a lost trial")
        if all(orphaned for _, orphaned in groups) or time.monotonic() > deadline:
            return
        time.sleep(0.2)


def _groups_of_actors() -> list[tuple[object, bool]]:
    """Placement groups that actors of this job made and that are not removed; is the actor dead?"""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup

    removed = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Value("REMOVED")
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    raw = state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(each) for each in raw]
    return [
        (
            PlacementGroup(ray.PlacementGroupID(group.placement_group_id)),
            group.creator_actor_dead,
        )
        for group in groups
        if group.creator_job_id == job
        and any(group.creator_actor_id.strip(b"\xff"))  # all ones: made by no actor
        and group.state != removed
    ]


def free_placement_groups() -> None:
    """Remove this job's placement groups whose controller died, or they would keep their CPUs."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for each in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(each)
        if group.creator_job_id.hex() == job and group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
