"""Make the operator look at a cluster again: after failures it waits up to 17 minutes, and notices no quota."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from sp_ray_ml.cluster._kinds import ANNOTATION, RAY_CLUSTER

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["nudge"]


def nudge(api: Api, namespace: str, name: str) -> None:
    """Change an annotation of a cluster, which makes the operator reconsider it at once.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.

    Raises:
        ClusterNotFoundError: There is no such cluster.
        KubernetesError: It may not be changed, or the server cannot be reached.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat()
    api.patch(RAY_CLUSTER, namespace, name, {"metadata": {"annotations": {f"{ANNOTATION}nudged": now}}})
