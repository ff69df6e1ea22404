"""A look at a cluster: what Kubernetes has of it and what it says itself, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NODE, POD
from sp_ray_ml.errors import ClusterError, KubernetesAccessError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._describe import ClusterDescription
    from sp_ray_ml.cluster._head_http import HeadHttp

__all__ = ["look"]

Body = dict[str, Any]

_ANSWER_S = 4.0
"""How long a description waits for the cluster itself to say its versions."""


def look(api: Api, cluster: Body, dashboard: Callable[[], HeadHttp] | None) -> ClusterDescription:
    """What a cluster is, and how it is now.

    Args:
        api: The API server.
        cluster: The RayCluster as it is now.
        dashboard: Opens a connection to its dashboard; without one it is not asked itself, nor what stands around it.
    """
    from sp_ray_ml.cluster._describe import describe
    from sp_ray_ml.cluster._lifetime import lifetime_lines

    pods, _ = api.list(
        POD, cluster["metadata"]["namespace"], labels=f"{CLUSTER_LABEL}={cluster['metadata']['name']}"
    )
    versions = _versions(dashboard) if dashboard else {}
    problem = _not_looked_after(api, cluster) if dashboard else None
    return describe(
        cluster,
        pods,
        nodes=_nodes(api) if dashboard else None,
        ray_version=versions.get("ray"),
        python_version=versions.get("python"),
        notes=lifetime_lines(cluster, problem=problem),
    )


def _versions(dashboard: Callable[[], HeadHttp]) -> dict[str, str]:
    """Versions that run there, asked from the cluster; empty where it cannot answer."""
    from sp_ray_ml.cluster._ray_state import versions

    try:
        with dashboard() as opened:
            return versions(lambda path: opened.request("GET", path, timeout_s=_ANSWER_S))
    except ClusterError:
        return {}


def _not_looked_after(api: Api, cluster: Body) -> str | None:
    """Why nobody suspends it or deletes it when its time is over, where that is so."""
    from sp_ray_ml.cluster._agent_manifest import agent_problem, queue_problem
    from sp_ray_ml.cluster._lifetime import has_limits
    from sp_ray_ml.cluster._lifetime_rules import FOR_JOB

    if not has_limits(cluster):
        return None
    meta = cluster["metadata"]
    found = agent_problem(api, meta["namespace"], meta["name"])
    goes_with_job = FOR_JOB in (meta.get("annotations") or {})  # for which nothing has to be suspended
    return found or (None if goes_with_job else queue_problem(api, cluster))


def _nodes(api: Api) -> dict[str, Body] | None:
    try:
        return {node["metadata"]["name"]: node for node in api.list(NODE, None)[0]}
    except KubernetesAccessError:
        return None
