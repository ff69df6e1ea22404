"""Suspending a cluster, and bringing it back: by its spec, or where it is of a queue by Kueue."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import RAY_CLUSTER

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["resume", "suspend"]

Body = dict[str, Any]


def suspend(api: Api, cluster: Body, note: Callable[[str], None]) -> Body:
    """Have a cluster's pods deleted; where the head's home goes with its pod, it is saved to a black box first.

    Args:
        api: The API server.
        cluster: The RayCluster as it is now.
        note: Told where the home was saved.

    Returns:
        The RayCluster as it is then.

    Raises:
        ClusterError: The home cannot be saved; nothing was suspended.
    """
    from sp_ray_ml.cluster._kueue import set_active
    from sp_ray_ml.cluster._lifetime_rules import home_of, suspended_annotations

    namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
    if home_of(cluster) == "pod" and not cluster["spec"].get("suspend"):
        from sp_ray_ml.cluster._black_box import save_black_box

        place = save_black_box(api, namespace, name, reason="it is being suspended", with_home=True)
        note(f"Saved the head's home, which is on no volume: {place}")
    if set_active(api, cluster, False):  # Kueue suspends it then
        when = datetime.datetime.now(datetime.UTC)
        return api.patch(
            RAY_CLUSTER, namespace, name, {"metadata": {"annotations": suspended_annotations(when)}}
        )
    return api.patch(RAY_CLUSTER, namespace, name, {"spec": {"suspend": True}})


def resume(api: Api, cluster: Body) -> Body:
    """Have a suspended cluster's pods made again, or have it wait in its queue; returns it as it is then.

    Raises:
        ConfigError: Its team has not so many GPUs of a type left.
    """
    from sp_ray_ml.cluster._gpu_quotas import check_gpu_types
    from sp_ray_ml.cluster._kueue import set_active
    from sp_ray_ml.cluster._lifetime import resumed_annotations

    namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
    if cluster["spec"].get("suspend"):
        check_gpu_types(api, cluster)
    queued = set_active(api, cluster, True)
    # To leave the field out would not resume it.
    spec = {} if queued else {"spec": {"suspend": False}}
    return api.patch(
        RAY_CLUSTER, namespace, name, {**spec, "metadata": {"annotations": resumed_annotations()}}
    )
