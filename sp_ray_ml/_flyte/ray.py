"""The Ray cluster of a step on Flyte: a `RayJobConfig` of the settings that a cluster of ours has."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._manifest import Facts, build
from sp_ray_ml.cluster.run_settings import Idle, RunCluster
from sp_ray_ml.config import document_of, redact
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    import flyte
    from flyteplugins.ray import RayJobConfig

__all__ = ["ray_job_config"]

_NO_IMAGE = "image-of-the-task"
_UP_TO = {"keep": None, "job": datetime.timedelta(0)}


def ray_job_config(cluster: RunCluster) -> RayJobConfig:
    """What Flyte's Ray plugin makes the cluster of.

    The pods are those of `sp-ray create cluster`: resources, GPUs and their nodes, spot nodes, volumes, the pods'
    security settings. Pods without an image of their own have the task's. Not carried are Ray's token, which is the
    operator's business, NetworkPolicy and agent: Flyte makes and removes the cluster.

    Args:
        cluster: The settings.

    Raises:
        ConfigError: They ask for what Flyte has no place for.
    """
    from flyteplugins.ray import HeadNodeConfig, RayJobConfig, WorkerNodeConfig

    if cluster.queue:
        raise ConfigError(
            "Flyte makes the cluster, and Kueue sees no queue in it", where="cluster.queue",
            hint="Name a queue of Flyte's: pipeline_environment(…, queue=…)",
        )  # fmt: skip
    _check_open(cluster)
    settings = cluster.settings()
    spec = build(settings, Facts("", image=_NO_IMAGE, gpu_image=_NO_IMAGE, ray_version=""))["spec"]
    head = spec["headGroupSpec"]
    return RayJobConfig(
        head_node_config=HeadNodeConfig(
            ray_start_params=head["rayStartParams"], pod_template=_pod_template(head["template"], "ray-head")
        ),
        worker_node_config=[
            WorkerNodeConfig(
                group_name=group["groupName"],
                replicas=group["replicas"],
                min_replicas=group["minReplicas"],
                max_replicas=group["maxReplicas"],
                ray_start_params=group["rayStartParams"],
                pod_template=_pod_template(group["template"], "ray-worker"),
            )
            for group in spec["workerGroupSpecs"]
        ],
        enable_autoscaling=settings.autoscaling,
        shutdown_after_job_finishes=cluster.lifetime != "keep",
        ttl_seconds_after_finished=_time_to_live(cluster),
    )


def _check_open(cluster: RunCluster) -> None:
    """Refuse passwords: the cluster is a part of the task's specification, which whoever uses Flyte may read."""
    data = document_of(cluster).data
    groups = data["workers"] if isinstance(data["workers"], list) else [data["workers"]]
    for env in (data["env"], data["head"]["env"], *(group["env"] for group in groups)):
        if named := [name for name, value in env.items() if redact({name: value}) != {name: value}]:
            raise ConfigError(
                f"{', '.join(named)}: passwords would stand in what Flyte shows of the task", where="cluster.env",
                hint="Let Flyte set it: pipeline_environment(…, secrets=[flyte.Secret('KEY', as_env_var="
                f"'{named[0]}')]), or give the pods a service account that needs none",
            )  # fmt: skip


def _time_to_live(cluster: RunCluster) -> int | None:
    """Seconds that the cluster stays when its job has ended."""
    left = cluster.lifetime.idle if isinstance(cluster.lifetime, Idle) else _UP_TO[cluster.lifetime]
    return None if left is None else int(left.total_seconds())


def _pod_template(template: dict[str, Any], container: str) -> flyte.PodTemplate:
    import flyte

    spec = template["spec"]
    for each in spec["containers"]:
        if each.get("image") == _NO_IMAGE:
            del each["image"]
    metadata = template.get("metadata") or {}
    return flyte.PodTemplate(
        pod_spec=spec,  # as Kubernetes' JSON, which is what it is sent as
        primary_container_name=container,
        labels=metadata.get("labels"),
        annotations=metadata.get("annotations"),
    )
