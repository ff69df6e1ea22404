"""How much of a cluster Ray has given to tasks and actors, asked from its dashboard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._activity import Head, find_head, read_json
from sp_ray_ml.cluster._ray_state import Get, nodes
from sp_ray_ml.cluster._usage import Share
from sp_ray_ml.errors import ClusterError, SpRayError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["ask_share", "share_of"]

Body = dict[str, Any]

_LIST = "?limit=10000&detail=true&filter_keys=state&filter_predicates=%3D&filter_values={}"
_ACTORS = f"/api/v0/actors{_LIST.format('ALIVE')}"
_TASKS = f"/api/v0/tasks{_LIST.format('RUNNING')}"
_IN_GROUP = re.compile(r"(CPU|GPU)_group_[0-9a-f]{8,}")
"""A resource of a placement group. With the bundle's number in its name it is there once more."""
_TASK_OF_ACTOR = "ACTOR_TASK"


def ask_share(api: Api, cluster: Body, pods: Sequence[Body], *, direct: bool | None = None) -> Share | str:
    """Ask a cluster how much of it is in use; why it does not tell, in words, where it does not.

    Args:
        api: The API server.
        cluster: The RayCluster.
        pods: Its pods.
        direct: As `Head` has it.
    """
    head = find_head(pods, cluster)
    if head is None:
        return "no head runs"
    try:
        with Head(api, cluster, head, direct=direct) as asked:
            return share_of(asked.ray.get)
    except SpRayError as error:
        return error.message


def share_of(get: Get) -> Share:
    """The part of all CPUs and GPUs that tasks which run and actors which live hold.

    What a driver, a notebook's kernel or a process beside Ray does is not seen: Ray has given nothing to it.

    Args:
        get: Asks the dashboard for a path.

    Raises:
        ClusterError: It does not answer, or in another form than is expected.
    """
    table = nodes(get)
    try:
        actors = read_json(get(_ACTORS))["data"]["result"]["result"]
        tasks = read_json(get(_TASKS))["data"]["result"]["result"]
        held = [
            *(actor.get("required_resources") or {} for actor in actors),
            # A call of an actor runs on what the actor holds.
            *(task.get("required_resources") or {} for task in tasks if task.get("type") != _TASK_OF_ACTOR),
        ]
        used = {name: sum(_amount(each, name) for each in held) for name in ("CPU", "GPU")}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClusterError(f"the answer has another form than expected ({error!r})") from None
    cpus, gpus = sum(node.cpus for node in table), sum(node.gpus for node in table)
    return Share(
        min(1.0, used["CPU"] / cpus) if cpus else None, min(1.0, used["GPU"] / gpus) if gpus else None
    )


def _amount(resources: Mapping[str, float], name: str) -> float:
    found = [float(resources[name])] if resources.get(name) else []
    for key, amount in resources.items():
        match = _IN_GROUP.fullmatch(key)
        if match and match[1] == name:
            found.append(float(amount))
    return max(found, default=0.0)
