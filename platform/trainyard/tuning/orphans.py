"""Placement groups whose maker is dead: given back, so that a lost trial cannot block the sweep.

Ray Train reserves its workers by a placement group of its controller, an actor. When that is killed
together with its trial, the group lives on as long as the job does. Ray Train's own cleaner asks the
State API, which needs the dashboard and fails with two Rays on one host; this asks the GCS, which is
always there.
"""

import logging

log = logging.getLogger(__name__)


def release_orphans() -> int:
    """Remove this job's placement groups that were made by an actor that is dead; returns how many."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    removed = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Value("REMOVED")
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    released = 0
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        orphaned = group.creator_actor_dead and any(group.creator_actor_id.strip(b"\xff"))
        if orphaned and group.creator_job_id == job and group.state != removed:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            released += 1
            log.warning("released the placement group of a lost trial")
    return released
