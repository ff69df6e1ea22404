"""Ray clusters on Kubernetes, by KubeRay: made by one call, explained while they come, and gone when idle."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from sp_ray_ml.cluster._reporter import Reporter
    from sp_ray_ml.cluster._snapshot import Cause
    from sp_ray_ml.cluster.options import ClusterOptions
    from sp_ray_ml.cluster.planned import manifests, plan_cluster
    from sp_ray_ml.cluster.ray_cluster import RayCluster, list_clusters
    from sp_ray_ml.cluster.run_settings import RunCluster
    from sp_ray_ml.cluster.settings import ClusterSettings, HeadGroup, WorkerGroup
    from sp_ray_ml.cluster.team import (
        apply_team,
        delete_team,
        describe_team,
        list_teams,
        plan_team,
        read_team,
        team_manifests,
    )
    from sp_ray_ml.cluster.team_prices import Prices
    from sp_ray_ml.cluster.team_settings import Team
    from sp_ray_ml.cluster.team_usage import report_team, usage_now

__all__ = [
    "Cause",
    "ClusterOptions",
    "ClusterSettings",
    "HeadGroup",
    "Prices",
    "RayCluster",
    "Reporter",
    "RunCluster",
    "Team",
    "WorkerGroup",
    "apply_team",
    "delete_team",
    "describe_team",
    "list_clusters",
    "list_teams",
    "manifests",
    "plan_cluster",
    "plan_team",
    "read_team",
    "report_team",
    "team_manifests",
    "usage_now",
]


def __getattr__(name: str) -> Any:
    from sp_ray_ml.optional import lazy_attributes

    return lazy_attributes(
        __name__,
        name,
        {
            "_reporter": ["Reporter"],
            "_snapshot": ["Cause"],
            "options": ["ClusterOptions"],
            "planned": ["manifests", "plan_cluster"],
            "ray_cluster": ["RayCluster", "list_clusters"],
            "run_settings": ["RunCluster"],
            "settings": ["ClusterSettings", "HeadGroup", "WorkerGroup"],
            "team": [
                "apply_team",
                "delete_team",
                "describe_team",
                "list_teams",
                "plan_team",
                "read_team",
                "team_manifests",
            ],
            "team_prices": ["Prices"],
            "team_settings": ["Team"],
            "team_usage": ["report_team", "usage_now"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
