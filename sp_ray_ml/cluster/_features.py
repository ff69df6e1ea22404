"""What the installed KubeRay knows, read off the schema that the API server publishes for `ray.io/v1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Features", "features", "features_of", "published_schema"]

_SINCE = (
    ("1.7", "workerGroupSpecs.priority"),
    ("1.6", "upgradeStrategy"),
    ("1.5.1", "authOptions"),
    ("1.5", "workerGroupSpecs.labels"),
    ("1.4", "autoscalerOptions.version"),
)
"""Fields that came with a version of KubeRay, the newest first: the CRD itself does not say its version."""
_TOO_OLD = "Upgrade it: helm upgrade kuberay-operator kuberay/kuberay-operator, and its CRDs, which helm leaves as they are"
_INSTALL = (
    "Install the KubeRay operator, 1.4 or later: helm install kuberay-operator kuberay/kuberay-operator"
)


@dataclass(frozen=True)
class Features:
    """What the installed CRD knows.

    Attributes:
        version: The least version of KubeRay that has its fields: `1.7`, `1.5.1`; None where it cannot be read.
        auth_options: Whether the operator makes Ray's token itself (1.5.1).
        upgrade_strategy: Whether a changed spec can replace pods (1.6).
        schema: OpenAPI schema of a RayCluster; None where it cannot be read.
    """

    version: str | None
    auth_options: bool = True
    upgrade_strategy: bool = True
    schema: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


def features(api: Api) -> Features:
    """Ask the API server what the installed KubeRay knows; where that may not be read, the newest is taken for granted.

    Raises:
        KubernetesError: There is no KubeRay, or one before 1.4.
    """
    try:
        schema = published_schema(api)
    except KubernetesAccessError:
        return Features(None)
    return features_of(schema, where=api.context or None)


def published_schema(api: Api) -> Mapping[str, Any]:
    """The OpenAPI schema of RayClusters, as the API server publishes it.

    Raises:
        KubernetesAccessError: It may not be read.
        KubernetesError: There is no `ray.io/v1`.
    """
    try:
        document = api.json("GET", f"/openapi/v3{RAY_CLUSTER.base}")
    except ClusterNotFoundError:
        raise _missing(api) from None
    for schema in document.get("components", {}).get("schemas", {}).values():
        for each in schema.get("x-kubernetes-group-version-kind") or ():
            if each.get("kind") == RAY_CLUSTER.name and each.get("version") == "v1":
                found: Mapping[str, Any] = schema
                return found
    raise _missing(api)


def _missing(api: Api) -> KubernetesError:
    """The error for a cluster without `ray.io/v1`: no KubeRay, or one of before 1.0."""
    try:
        group = api.json("GET", "/apis/ray.io")
    except (ClusterNotFoundError, KubernetesAccessError):
        group = {}
    except KubernetesError as error:
        if error.status != 404:
            raise
        group = {}
    found = [each["version"] for each in group.get("versions") or ()]
    if found and "v1" not in found:
        return KubernetesError(
            f"KubeRay is too old here: it has RayClusters of ray.io/{', '.join(found)} only, 1.4 or later is needed",
            where=api.context or None, hint=_TOO_OLD, status=404,
        )  # fmt: skip
    return KubernetesError(
        "this cluster does not know RayClusters (ray.io/v1)",
        where=api.context or None,
        hint=_INSTALL,
        status=404,
    )


def features_of(schema: Mapping[str, Any], *, where: str | None = None) -> Features:
    """What a CRD's schema knows.

    Args:
        schema: OpenAPI schema of a RayCluster.
        where: The place for the error.

    Raises:
        KubernetesError: It is of a KubeRay before 1.4.
    """
    known = next((version for version, path in _SINCE if _has(schema, path)), None)
    if known is None:
        raise KubernetesError(
            "KubeRay is too old here: its CRD lacks autoscalerOptions.version, which came with 1.4, the oldest supported",
            where=where, hint=_TOO_OLD,
        )  # fmt: skip
    return Features(known, _has(schema, "authOptions"), _has(schema, "upgradeStrategy"), schema)


def _has(schema: Mapping[str, Any], path: str) -> bool:
    node = schema.get("properties", {}).get("spec", {})
    for name in path.split("."):
        node = node.get("items", node).get("properties", {}).get(name)
        if node is None:
            return False
    return True
