"""What a cluster's head (Ray's GCS) knows: nodes, programs, placement groups, actors. Of the cluster connected to.

Ray has public forms of this only where its dashboard runs: these tables are private to Ray 2.60, and read here alone.
"""

from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import common_pb2, gcs_pb2

LOST = (common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION, common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
GROUP = gcs_pb2.PlacementGroupTableData
ACTOR = gcs_pb2.ActorTableData


def nodes() -> list[dict[str, Any]]:
    """The nodes that there are or were: {"id", "address", "host", "alive", "died": why, "" if on purpose}."""
    return [
        {
            "id": node["NodeID"],
            "address": node["NodeManagerAddress"],
            "host": node["NodeManagerHostname"],
            "alive": node["Alive"],
            "died": node["DeathReasonMessage"] or "lost" if node["DeathReason"] in LOST else "",
        }
        for node in ray.nodes()
    ]


def programs() -> list[Any]:
    """Those that are or were connected (JobTableData: job_id, is_dead, entrypoint, config, job_info)."""
    table = state._connect_and_get_accessor().get_job_table(
        skip_submission_job_info_field=False, skip_is_running_tasks_field=True
    )
    return [gcs_pb2.JobTableData.FromString(row) for row in table]


def groups() -> list[Any]:
    """Placement groups, removed ones too (PlacementGroupTableData: creator_job_id, state, bundles)."""
    return [GROUP.FromString(row) for row in state._connect_and_get_accessor().get_placement_group_table()]


def actors() -> list[Any]:
    """Actors, dead ones too (ActorTableData)."""
    return [ACTOR.FromString(row) for row in state._connect_and_get_accessor().get_actor_table(None, None)]


def held(group: Any) -> dict[str, float]:
    """The resources that a placement group reserves, over all its bundles."""
    found: dict[str, float] = {}
    for bundle in group.bundles:
        for name, amount in bundle.unit_resources.items():
            found[name] = found.get(name, 0.0) + amount
    return found
