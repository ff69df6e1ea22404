"""A cluster by its name; where there is none, near names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.errors import ClusterNotFoundError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["find_cluster"]


def find_cluster(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """The RayCluster.

    Raises:
        ClusterNotFoundError: There is none of this name, or no such namespace.
    """
    try:
        return api.get(RAY_CLUSTER, namespace, name)
    except ClusterNotFoundError as error:
        if "namespace" in error.message:
            raise
    from sp_ray_ml._names import near_match

    known = [row["metadata"]["name"] for row in api.table(RAY_CLUSTER, namespace)]
    if not known:
        api.check_namespace(namespace)
    raise ClusterNotFoundError(
        f"there is no cluster {name}{near_match(name, known)}", where=f"namespace {namespace}",
        hint=f"See what there is: sp-ray get cluster -n {namespace}",
    )  # fmt: skip
