"""Removal of placement groups whose creator is dead, so that a lost run cannot block other runs.

The controller of Ray Train, an actor, reserves workers with a placement group. When the controller
is killed, the group remains until the job ends. Ray Train's own cleaner uses the State API, which
needs the dashboard and fails with two Rays on one host. This module queries the GCS, which always
runs.
"""

import time


def release_orphans(patience: float = 0.0) -> None:
    """Remove this job's placement groups that dead actors created.

    While groups of live actors exist, repeat for `patience` seconds: an actor may be about to
    remove its group, or its death may not be recorded yet.
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
    """Return this job's placement groups that actors created, as (group, creator is dead)."""
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
        and any(group.creator_actor_id.strip(b"\xff"))  # an id of all ones: no actor created it
        and group.state != removed
    ]
