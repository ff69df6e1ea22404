"""KubeRay's RayJob: a cluster, a run on it and the end of both as one object, for which no client has to stay. Pure."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import ANNOTATION, CLUSTER_LABEL, QUEUE_LABEL, RAY_JOB
from sp_ray_ml.cluster._manifest import _CONTAINER_SECURITY, _POD_SECURITY
from sp_ray_ml.cluster.run_settings import Idle, RunCluster

if TYPE_CHECKING:
    from sp_ray_ml.cluster._prepare import Request

__all__ = ["RUN_JOB", "rayjob_objects"]

Body = dict[str, Any]

RUN_JOB = f"{ANNOTATION}run-job"
"""Label of all pods of a RayJob's clusters: each attempt has another cluster, whose name nobody knows before."""
_FOLLOWERS_S = 120
"""A cluster stays so long after its job, so that whoever follows it reads its last words."""
_SUBMITTER = {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "50m", "memory": "200Mi"}}


def rayjob_objects(
    request: Request,
    wanted: RunCluster,
    entrypoint: str,
    *,
    env: Mapping[str, str],
    metadata: Mapping[str, str],
    annotations: Mapping[str, str],
) -> list[Body]:
    """The RayJob, and then what stands beside it: its NetworkPolicy.

    Args:
        request: The cluster, from `prepare`; its name becomes the RayJob's, and the id of the job.
        wanted: The run's cluster.
        entrypoint: What the job runs.
        env: Environment variables of the job.
        metadata: Of the Ray job.
        annotations: Of the RayJob.
    """
    name, namespace = request.name, request.namespace
    cluster = copy.deepcopy(request.cluster["spec"])
    labels = {RUN_JOB: name}
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
    for group in groups:
        marks = group["template"].setdefault("metadata", {}).setdefault("labels", {})
        marks.update(labels)
        marks.pop(QUEUE_LABEL, None)  # it is the RayJob that waits, not each pod
    shutdown = wanted.lifetime != "keep"
    spec: Body = {
        "entrypoint": entrypoint,
        "jobId": name,
        "submissionMode": "K8sJobMode",
        "backoffLimit": wanted.restarts,
        "shutdownAfterJobFinishes": shutdown,
        "metadata": dict(metadata),
        "runtimeEnvYAML": json.dumps({"env_vars": dict(env)}),  # JSON is YAML
        "rayClusterSpec": cluster,
        "submitterPodTemplate": _submitter(cluster, labels, secure=not request.settings.insecure),
    }
    if shutdown:
        idle = wanted.lifetime.idle.total_seconds() if isinstance(wanted.lifetime, Idle) else 0
        spec["ttlSecondsAfterFinished"] = max(int(idle), _FOLLOWERS_S)
    name_of_queue = wanted.queue or request.queue
    queue = {QUEUE_LABEL: name_of_queue} if name_of_queue else {}
    if queue:
        spec["suspend"] = True  # until Kueue admits all of it
    job = {
        "apiVersion": RAY_JOB.api_version,
        "kind": RAY_JOB.name,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**request.cluster["metadata"].get("labels", {}), **labels, **queue},
            "annotations": {**wanted.annotations, **annotations},
        },
        "spec": spec,
    }
    return [job, *(_by_run(each, name) for each in request.companions if each["kind"] == "NetworkPolicy")]


def _by_run(policy: Body, name: str) -> Body:
    """A NetworkPolicy that goes by the run, and not by the name of a cluster."""
    text = json.dumps(policy).replace(json.dumps({CLUSTER_LABEL: name}), json.dumps({RUN_JOB: name}))
    found: Body = json.loads(text)
    return found


def _submitter(cluster: Body, labels: Mapping[str, str], *, secure: bool) -> Body:
    """The pod that hands the job to Ray: small, and in the head's image."""
    head = cluster["headGroupSpec"]["template"]["spec"]
    container: Body = {
        "name": "ray-job-submitter",
        "image": head["containers"][0]["image"],
        "resources": copy.deepcopy(_SUBMITTER),
    }
    pod: Body = {"restartPolicy": "Never", "containers": [container]}
    for key in ("imagePullSecrets", "serviceAccountName", "nodeSelector", "tolerations"):
        if head.get(key):
            pod[key] = copy.deepcopy(head[key])
    if secure:
        pod |= {"automountServiceAccountToken": False, "securityContext": dict(_POD_SECURITY)}
        container["securityContext"] = copy.deepcopy(_CONTAINER_SECURITY)
    return {"metadata": {"labels": dict(labels)}, "spec": pod}
