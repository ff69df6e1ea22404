"""What would be made of a cluster's settings, and whether it would fit: nothing is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from typing import Unpack

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._plan import Plan
    from sp_ray_ml.cluster._prepare import Request
    from sp_ray_ml.cluster.options import ClusterOptions
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["manifests", "plan_cluster", "request_of"]

_BESIDE_A_MANIFEST = {"idle_timeout", "ttl", "black_box", "insecure", "egress"}
"""What may be said of a cluster beside its full manifest."""


def plan_cluster(
    name: str | None = None,
    namespace: str | None = None,
    *,
    settings: ClusterSettings | str | os.PathLike[str] | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
    **options: Unpack[ClusterOptions],
) -> Plan:
    """Whether a cluster would fit, now, after scaling up or never, and why. Nothing is made.

    Args:
        name: Its name.
        namespace: Its namespace.
        settings: As `RayCluster.create_cluster`.
        kubeconfig: Path of a kubeconfig.
        context: Its context.
        **options: In flat words.
    """
    from dataclasses import replace

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._plan import plan

    api = Api(kubeconfig, context)
    request = request_of(api, name, namespace, settings, options)
    return replace(plan(api, request.cluster, request.companions, request.known), notes=request.notes)


def manifests(
    name: str | None = None,
    namespace: str | None = None,
    *,
    settings: ClusterSettings | str | os.PathLike[str] | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
    **options: Unpack[ClusterOptions],
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The objects that `create_cluster` would make, tokens struck out, and its notes. Nothing is made."""
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._prepare import notes_ahead

    api = Api(kubeconfig, context)
    request = request_of(api, name, namespace, settings, options)
    return request.objects(), tuple(notes_ahead(api, request))


def request_of(
    api: Api,
    name: str | None,
    namespace: str | None,
    settings: ClusterSettings | str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> Request:
    """What is asked for, in flat words, settings or a file, as the objects that are to be made.

    Raises:
        ConfigError: A setting is wrong, or said twice.
    """
    from sp_ray_ml.cluster._prepare import prepare
    from sp_ray_ml.cluster.options import settings_of

    manifest, path = None, settings
    if isinstance(settings, str | os.PathLike):
        from sp_ray_ml.cluster._validate import read_file

        settings, manifest = read_file(settings, name, namespace)
    if manifest is not None and (inside := [key for key in options if key not in _BESIDE_A_MANIFEST]):
        raise ConfigError(
            f"{', '.join(inside)}: a full RayCluster manifest says that itself", where=str(path),
            hint="Change it there, or write our short form: docs/clusters.md",
        )  # fmt: skip
    wanted = settings_of(name or (None if settings else "planned"), namespace, options, settings)
    return prepare(api, wanted, manifest)
