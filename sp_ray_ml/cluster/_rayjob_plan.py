"""A run's RayJob as it is to be made, when it is known that its cluster can come up: for a run, and for a schedule of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._create import CREATOR
from sp_ray_ml.cluster._gpu_quotas import check_gpu_types
from sp_ray_ml.cluster._manifest import has_token
from sp_ray_ml.cluster._plan import plan as plan_cluster
from sp_ray_ml.cluster._prepare import prepare
from sp_ray_ml.cluster._rayjob import rayjob_objects
from sp_ray_ml.cluster._versions import RAYS_OWN
from sp_ray_ml.errors import ClusterUnhealthyError, ConfigError, VersionMismatchError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._prepare import Request
    from sp_ray_ml.cluster.run_settings import RunCluster

__all__ = ["SMALLER", "check_image", "plan_rayjob"]

Body = dict[str, Any]

SMALLER = "Change the config's cluster: what it asks for is never there"
"""What to do about a run's cluster that can never come up."""


def plan_rayjob(
    api: Api,
    wanted: RunCluster,
    name: str,
    entrypoint: str,
    *,
    env: Mapping[str, str],
    metadata: Mapping[str, str],
    annotations: Mapping[str, str],
    starts_now: bool = False,
) -> tuple[Request, list[Body]]:
    """What a run's RayJob takes, looked at and put together; nothing is made.

    Args:
        api: The API server.
        wanted: The run's cluster. What it does not say comes from the namespace's team, its queue too.
        name: The RayJob's name, and the id of the job.
        entrypoint: As `rayjob_objects` has it.
        env: Likewise.
        metadata: Likewise.
        annotations: Likewise; who makes it is added, as KubeRay hands it on: the cluster's hours are theirs.
        starts_now: Whether it begins at once, so that what others use now is in its way.

    Returns:
        The cluster, and the objects: the RayJob first.

    Raises:
        ClusterNotFoundError: There is no such namespace.
        ClusterUnhealthyError: It can never come up; the message says why.
        VersionMismatchError: KubeRay makes no token for it.
        ConfigError: It is to be kept, and the team's queue takes none that is; or the team has not so many GPUs of a type
            left; or its image has no sp_ray_ml.
    """
    request = prepare(api, wanted.settings(name))
    api.check_namespace(request.namespace)
    check_image(request.image)
    if has_token(request.cluster) and not request.cluster["spec"].get("authOptions"):
        raise VersionMismatchError(
            "the KubeRay operator knows no authOptions, so nobody makes the token of a cluster that it names itself",
            where="cluster", hint="Update KubeRay to 1.5.1 or later",
        )  # fmt: skip
    if request.queue and wanted.lifetime == "keep":
        raise ConfigError(
            f"the team's clusters wait in its queue {request.queue}, and KubeRay suspends no RayJob whose cluster is kept",
            where="cluster.lifetime", hint="Use lifetime: job or {idle: 2h}",
        )  # fmt: skip
    if not (wanted.queue or request.queue):  # what a queue has room for is the queue's to say
        found = plan_cluster(api, request.cluster, request.companions, request.known)
        if found.verdict == "never_fits":
            raise ClusterUnhealthyError(
                "its cluster can never come up\n" + "\n".join(found.lines()), where=f"{request.namespace}/{name}",
                hint=SMALLER,
            )  # fmt: skip
    if starts_now and not wanted.queue:
        check_gpu_types(api, request.cluster)
    creator = {CREATOR: who} if (who := api.user()) else {}
    return request, rayjob_objects(
        request, wanted, entrypoint, env=env, metadata=metadata, annotations={**annotations, **creator}
    )


def check_image(image: str) -> None:
    """Refuse Ray's own image, which every cluster has that is told of none.

    Raises:
        ConfigError: It is that.
    """
    if image.removeprefix("docker.io/").startswith(RAYS_OWN):
        raise ConfigError(
            f"a RayJob needs an image with sp_ray_ml in it, as no client brings it there: {image} is Ray's own",
            where="cluster.image",
            hint="docker/ has a Dockerfile; docs/clusters.md says how it is built. A team's file may name it for all",
        )  # fmt: skip
