"""Who uses a quota, and who could raise it, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, TEAM_LABEL
from sp_ray_ml.cluster._pod_resources import format_amount, quota_use
from sp_ray_ml.cluster._requests import ClusterRequest

__all__ = ["amount_of", "how_to_raise", "is_own", "users"]

Body = Mapping[str, Any]
_MOST_USERS = 3


def amount_of(resource: str, amount: Decimal) -> str:
    """An amount with its unit: `2 CPUs`, `3 secrets`."""
    if resource.startswith("count/") and resource != "count/pods":
        resource = resource.removeprefix("count/").partition(".")[0]
    return format_amount(resource, amount)


def is_own(pod: Body, request: ClusterRequest) -> bool:
    """Whether a pod is one of the cluster that is asked for."""
    return bool((pod["metadata"].get("labels") or {}).get(CLUSTER_LABEL) == request.name)


def how_to_raise(quota: Body, namespace: str) -> str:
    """How a quota can be raised, as the end of a sentence."""
    if team := (quota["metadata"].get("labels") or {}).get(TEAM_LABEL):
        # By hand it would be what it was with the next apply.
        return f"have whoever applies the file of team {team} raise it"
    return f"have it raised: kubectl edit quota {quota['metadata']['name']} -n {namespace}"


def users(resource: str, pods: Sequence[Body]) -> str:
    """Who uses a quota: ` (4 CPUs by cluster other, …)`; empty where that is not seen."""
    used: dict[str, Decimal] = {}
    for pod in pods:
        if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            continue
        if amount := quota_use(pod, resource):
            meta = pod["metadata"]
            cluster = (meta.get("labels") or {}).get(CLUSTER_LABEL)
            owner = next(iter(meta.get("ownerReferences") or ()), None)
            who = (
                f"cluster {cluster}" if cluster
                else f"{owner['kind']} {owner['name']}" if owner
                else f"pod {meta.get('name')}"
            )  # fmt: skip
            used[who] = used.get(who, Decimal(0)) + amount
    most = sorted(used.items(), key=lambda pair: -pair[1])[:_MOST_USERS]
    named = [f"{amount_of(resource, amount)} by {who}" for who, amount in most]
    if len(used) > _MOST_USERS:
        named.append(f"the rest by {len(used) - _MOST_USERS} more")
    return f" ({', '.join(named)})" if named else ""
