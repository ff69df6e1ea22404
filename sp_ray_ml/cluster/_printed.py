"""What a cluster's pods have printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, POD

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["pods_of_group", "printed"]


def pods_of_group(api: Api, cluster: Mapping[str, Any], worker_group: str | None) -> list[Mapping[str, Any]]:
    """The pods of a worker group, or the head's without one.

    Raises:
        ClusterNotFoundError: There is no such group; near names are in the message.
    """
    from sp_ray_ml.cluster._snapshot import group_states
    from sp_ray_ml.cluster._validate import find_worker_group

    namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
    if worker_group is not None:
        find_worker_group(cluster, worker_group, where=f"{namespace}/{name}")
    pods, _ = api.list(POD, namespace, labels=f"{CLUSTER_LABEL}={name}")
    return [
        pod
        for state in group_states(cluster, pods)
        if state.name == (worker_group or "")
        for pod in state.pods
    ]


def printed(api: Api, pod: Mapping[str, Any], tail: int | None) -> str:
    """What Ray's container of a pod has printed, or so many lines at the end."""
    container = pod["spec"]["containers"][0]["name"]
    return api.logs(pod["metadata"]["namespace"], pod["metadata"]["name"], container, tail=tail)
