"""Scaling one worker group: a patch that tests the group's name, so that it never changes another one."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._gpu_quotas import check_gpu_types
from sp_ray_ml.cluster._kinds import RAY_CLUSTER, queue_of
from sp_ray_ml.cluster._validate import find_worker_group
from sp_ray_ml.errors import ConfigError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["scale"]

_ATTEMPTS = 5
_ELASTIC = "kueue.x-k8s.io/elastic-job"
"""Annotation by which Kueue adds and takes away quota while a cluster runs."""


def scale(api: Api, namespace: str, name: str, worker_group: str, replicas: int) -> dict[str, Any]:
    """Set a worker group's replicas; returns the RayCluster.

    Raises:
        ClusterNotFoundError: There is no such cluster or group.
        ConfigError: The number is none that the group can have, or its team has not so many GPUs left.
    """
    where = f"{namespace}/{name}"
    for attempt in range(_ATTEMPTS):
        cluster = api.get(RAY_CLUSTER, namespace, name)
        index = find_worker_group(cluster, worker_group, where=where)
        group = cluster["spec"]["workerGroupSpecs"][index]
        _check(cluster, group, worker_group, replicas, where)
        if replicas > int(group.get("replicas") or 0) and not cluster["spec"].get("suspend"):
            check_gpu_types(api, _scaled(cluster, index, replicas))
        place = f"/spec/workerGroupSpecs/{index}"
        patch: list[dict[str, Any]] = [
            {"op": "test", "path": f"{place}/groupName", "value": worker_group},
            {"op": "add", "path": f"{place}/replicas", "value": replicas},
        ]
        try:
            return api.patch(RAY_CLUSTER, namespace, name, patch, type="json")
        except KubernetesError as error:
            # The groups have moved meanwhile, or somebody else has written: look again.
            moved = error.status == 409 or (error.status == 422 and "test" in error.message.lower())
            if not moved or attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def _scaled(cluster: dict[str, Any], index: int, replicas: int) -> dict[str, Any]:
    found = copy.deepcopy(cluster)
    found["spec"]["workerGroupSpecs"][index]["replicas"] = replicas
    return found


def _check(
    cluster: dict[str, Any], group: dict[str, Any], worker_group: str, replicas: int, where: str
) -> None:
    low, high = int(group.get("minReplicas") or 0), int(group.get("maxReplicas", 2**31 - 1))
    if replicas < 0:
        raise ConfigError(f"replicas must not be negative, got {replicas}", where=where)
    if not low <= replicas <= high:
        raise ConfigError(
            f"worker group {worker_group} has between {low} and {high} workers, got {replicas}", where=where,
            hint="KubeRay would keep to that range; change minReplicas and maxReplicas first",
        )  # fmt: skip
    meta = cluster["metadata"]
    queue = queue_of(cluster)
    elastic = (meta.get("annotations") or {}).get(_ELASTIC) == "true"
    if queue and not elastic and not cluster["spec"].get("suspend") and replicas != group.get("replicas"):
        place = f"{meta['name']} -n {meta['namespace']}"
        raise ConfigError(
            f"it runs in queue {queue}, whose quota it has as a whole: Kueue would stop all of it, the head too, and "
            "have it wait once more", where=where,
            hint=f"Suspend it first, then scale and resume it: sp-ray suspend cluster {place}",
        )  # fmt: skip
    if (
        cluster["spec"].get("enableInTreeAutoscaling")
        and low != high
        and replicas < int(group.get("replicas") or 0)
    ):
        raise ConfigError(
            f"Ray's autoscaler decides how many workers {worker_group} has: a smaller number would change nothing",
            where=where, hint="It removes idle workers itself; lower maxReplicas to force it",
        )  # fmt: skip
