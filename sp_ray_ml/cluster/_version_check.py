"""Whether what runs here fits what runs on a cluster, which is asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import KubernetesAccessError
from sp_ray_ml.logger import LOGGER

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._head_http import HeadHttp
    from sp_ray_ml.cluster._versions import Purpose

__all__ = ["check_there"]


def check_there(api: Api, namespace: str, name: str, dashboard: HeadHttp, for_what: Purpose) -> None:
    """Compare Ray, Python and packages here with those there; what differs and does no harm is logged.

    Raises:
        VersionMismatchError: They do not fit; the message names the pin.
    """
    from sp_ray_ml.cluster._ray_state import versions
    from sp_ray_ml.cluster._versions import check_versions, client_versions

    there: dict[str, Any] = dict(versions(dashboard.get))
    if for_what != "job":
        there["packages"] = _packages(api, namespace, name)
    for note in check_versions(client_versions(), there, for_what=for_what):
        LOGGER.warning("%s/%s: %s", namespace, name, note)


def _packages(api: Api, namespace: str, name: str) -> dict[str, str]:
    """Versions of the packages whose objects travel, asked from the head's Python; none where that may not be."""
    from sp_ray_ml.cluster._head_http import head_pod
    from sp_ray_ml.cluster._versions import server_packages

    pod = head_pod(api, namespace, name)
    try:
        return server_packages(api, namespace, pod)
    except KubernetesAccessError:
        return {}
