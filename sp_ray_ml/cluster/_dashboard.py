"""A cluster's dashboard, with the token that Ray asks for."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._head_http import HeadHttp
from sp_ray_ml.cluster._kinds import SECRET

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["dashboard_of", "ray_token"]


def ray_token(api: Api, namespace: str, cluster: dict[str, Any]) -> str | None:
    """The token that Ray asks for in this cluster; None where it asks for none.

    Raises:
        ClusterNotFoundError: There is no Secret that holds it: the operator has not made it yet.
        KubernetesAccessError: It may not be read.
    """
    from sp_ray_ml.cluster._manifest import has_token

    if not has_token(cluster):
        return None
    options = cluster["spec"].get("authOptions") or {}
    secret = api.get(SECRET, namespace, options.get("secretName") or cluster["metadata"]["name"])
    return base64.b64decode(secret["data"]["auth_token"]).decode()


def dashboard_of(api: Api, cluster: dict[str, Any]) -> HeadHttp:
    """Sends requests to a cluster's dashboard; raises as `ray_token`."""
    namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
    token = ray_token(api, namespace, cluster)
    # Through the API server's proxy `Authorization` does not get.
    headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
    return HeadHttp(api, namespace, name, headers=headers)
