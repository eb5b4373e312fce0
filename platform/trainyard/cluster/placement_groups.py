"""Placement groups whose creator is dead: removed, so that a lost run cannot block the others.

Ray Train reserves its workers by a placement group of its controller, an actor. When that is killed,
the group lives on as long as the job does. Ray Train's own cleaner asks the State API, which needs
the dashboard and fails with two Rays on one host. The GCS is always there.
"""

import time


def release_orphans(patience: float = 0.0) -> None:
    """Remove this job's placement groups whose creator, an actor, is dead.

    Groups of living actors get `patience` seconds: their removal, or the record of the actor's
    death, may be under way.
    """
    from ray.util.placement_group import remove_placement_group

    deadline = time.monotonic() + patience
    while True:
        groups = _groups_of_actors()
        for group, orphaned in groups:
            if orphaned:
                remove_placement_group(group)
        if all(orphaned for _, orphaned in groups) or time.monotonic() > deadline:
            return
        time.sleep(0.2)


def _groups_of_actors() -> list[tuple[object, bool]]:
    """Placement groups of this job that an actor created, and whether it is dead."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup

    removed = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Value("REMOVED")
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    raw = state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(each) for each in raw]
    return [
        (PlacementGroup(ray.PlacementGroupID(group.placement_group_id)), group.creator_actor_dead)
        for group in groups
        if group.creator_job_id == job
        and any(group.creator_actor_id.strip(b"\xff"))  # all ones: created by no actor
        and group.state != removed
    ]
