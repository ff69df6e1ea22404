"""Ray clusters on Kubernetes, by KubeRay: made by one call, explained while they come, and gone when idle."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from sp_ray_ml.cluster._snapshot import Cause
    from sp_ray_ml.cluster.options import ClusterOptions
    from sp_ray_ml.cluster.ray_cluster import RayCluster, Reporter, list_clusters, manifests, plan_cluster
    from sp_ray_ml.cluster.settings import ClusterSettings, HeadGroup, WorkerGroup

__all__ = [
    "Cause",
    "ClusterOptions",
    "ClusterSettings",
    "HeadGroup",
    "RayCluster",
    "Reporter",
    "WorkerGroup",
    "list_clusters",
    "manifests",
    "plan_cluster",
]


def __getattr__(name: str) -> Any:
    from sp_ray_ml.optional import lazy_attributes

    return lazy_attributes(
        __name__,
        name,
        {
            "_snapshot": ["Cause"],
            "options": ["ClusterOptions"],
            "ray_cluster": ["RayCluster", "Reporter", "list_clusters", "manifests", "plan_cluster"],
            "settings": ["ClusterSettings", "HeadGroup", "WorkerGroup"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
