"""Deleting a cluster: what is known of it is saved, and its hours summed, before its pods go."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.errors import KubernetesError, SpRayError
from sp_ray_ml.logger import LOGGER

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["delete", "save_before_deletion"]


def delete(
    api: Api, namespace: str, name: str, uid: str, black_box: str | os.PathLike[str] | bool
) -> str | None:
    """Delete a cluster that is there; returns where its black box lies.

    Args:
        api: The API server.
        namespace: Its namespace.
        name: Its name.
        uid: Its identity: another cluster of its name stays.
        black_box: As `RayCluster.delete` has it.

    Raises:
        KubernetesError: It may not be deleted; no black box was saved.
        StorageError: The black box cannot be saved; nothing was deleted.
    """
    place = None
    if black_box is not False:
        where = None if black_box is True else os.fspath(black_box)
        place = save_before_deletion(api, namespace, name, uid, where)
    _record_usage(api, namespace, name)
    api.delete(RAY_CLUSTER, namespace, name, uid=uid)
    return place


def save_before_deletion(api: Api, namespace: str, name: str, uid: str, where: str | None) -> str:
    """Save the black box of a cluster that may be deleted; arguments and errors as `delete` and `save_black_box` have."""
    from sp_ray_ml.cluster._black_box import save_black_box

    _check_deletion(api, namespace, name, uid)
    return save_black_box(api, namespace, name, where)


def _record_usage(api: Api, namespace: str, name: str) -> None:
    """Sum its hours for its team, if it has one, before its pods go; that it cannot be done hinders no deletion."""
    from sp_ray_ml.cluster._usage_store import record_usage

    try:
        record_usage(api, namespace, only=name)
    except SpRayError as error:  # members may write where they are kept: what cannot be read is told, too
        LOGGER.warning("%s/%s: its last hours are not summed for its team: %s", namespace, name, error)


def _check_deletion(api: Api, namespace: str, name: str, uid: str) -> None:
    """Have the API server say whether it will let it be deleted, before a black box says that it is."""
    try:
        api.delete(RAY_CLUSTER, namespace, name, uid=uid, dry_run=True)
    except KubernetesError as error:
        # Some webhooks do not take dry runs; they are asked when it comes to it.
        if "does not support dry run" not in error.message:
            raise
