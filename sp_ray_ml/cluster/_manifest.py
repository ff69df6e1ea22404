"""From settings to Kubernetes objects: the RayCluster, and what stands beside it. Pure: the same in, the same out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sp_ray_ml import __version__
from sp_ray_ml.cluster._gpu_types import SPOT_TERMS, SPOT_TOLERATIONS, gpu_terms
from sp_ray_ml.cluster._kinds import ANNOTATION, CLUSTER_LABEL, PVC, RAY_CLUSTER, SECRET
from sp_ray_ml.cluster._lifetime import lifetime_annotations
from sp_ray_ml.cluster._network_policy import network_policy
from sp_ray_ml.cluster._pod_resources import WHOLE_NODE
from sp_ray_ml.cluster._workbench import workbench_patch
from sp_ray_ml.cluster.settings import ClusterSettings, Group, WorkerGroup

__all__ = ["Facts", "build", "companions", "home_claim", "secure", "token_secret"]

Body = dict[str, Any]

GPU_RESOURCE = "nvidia.com/gpu"
_GPU_TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}
_ALONE: Body = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {
                "labelSelector": {"matchLabels": {WHOLE_NODE: "true"}},
                "namespaceSelector": {},
                "topologyKey": "kubernetes.io/hostname",
            }
        ]
    }
}
"""One worker a node, whoever's cluster it is of: GPUs, memory bandwidth and network are then its own."""
_DEDICATED = {"key": "dedicated", "operator": "Equal", "value": "ray", "effect": "NoSchedule"}
_USER = 1000
"""User of Ray's own images; the name they give, `ray`, is none that `runAsNonRoot` can check."""
_MOST_WORKERS = 100_000
"""`maxReplicas` is required, and the operator never makes more: out of the way of `sp-ray scale`."""
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "fsGroup": _USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


_CLIENT_SERVER = [{"name": "GRPC_ENABLE_FORK_SUPPORT", "value": "false"}]
"""Ray's client server forks while gRPC's threads run; without this the first `ray://` connection to a new head fails
after 30 s (seen with Ray 2.60)."""


@dataclass(frozen=True)
class Facts:
    """What the manifests depend on beside the settings.

    Attributes:
        namespace: Where the cluster is to be.
        image: Image of groups without GPUs that name none.
        gpu_image: Likewise with GPUs.
        ray_version: Version of Ray in them.
        operator_makes_token: Whether the operator knows `authOptions` (KubeRay 1.5.1).
        operator_namespaces: Where the operator may run.
        api_server: Addresses and ports of the API server, as pods reach it.
        volumes: Whether there is a storage class that a home's volume can come from.
    """

    namespace: str
    image: str
    gpu_image: str
    ray_version: str
    operator_makes_token: bool = True
    operator_namespaces: tuple[str, ...] = ()
    api_server: tuple[tuple[str, int], ...] = ()
    volumes: bool = True


def build(settings: ClusterSettings, facts: Facts) -> Body:
    """The RayCluster of these settings."""
    head = _template(settings, settings.head, "ray-head", facts)
    _set_environment(head["spec"]["containers"][0], _CLIENT_SERVER)
    _add_home(settings, head, facts)
    spec: Body = {
        "rayVersion": settings.ray_version or facts.ray_version,
        "headGroupSpec": {"rayStartParams": dict(settings.head.ray_start_params), "template": head},
        "workerGroupSpecs": [_worker_group(settings, group, facts) for group in settings.workers],
    }
    if settings.autoscaling:
        spec["enableInTreeAutoscaling"] = True
    cluster = {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.name,
        "metadata": {
            "name": settings.name,
            "namespace": facts.namespace,
            "labels": dict(settings.labels),
            "annotations": {**lifetime_annotations(settings), **settings.annotations},
        },
        "spec": spec,
    }
    return cluster if settings.insecure else secure(cluster, facts)


def secure(manifest: Body, facts: Facts) -> Body:
    """A RayCluster with the secure defaults filled in where it says nothing: token, user, seccomp, no account's token.

    Args:
        manifest: Any RayCluster; it is not changed.
        facts: What the defaults depend on.
    """
    cluster = copy.deepcopy(manifest)
    cluster["metadata"].setdefault("annotations", {})[f"{ANNOTATION}version"] = __version__
    spec = cluster["spec"]
    spec.setdefault("rayVersion", facts.ray_version)
    by_hand = "authOptions" not in spec and not facts.operator_makes_token
    if facts.operator_makes_token:
        spec.setdefault("authOptions", {"mode": "token"})
    if spec.get("enableInTreeAutoscaling"):
        spec.setdefault("autoscalerOptions", {}).setdefault("securityContext", dict(_CONTAINER_SECURITY))
    groups = [spec["headGroupSpec"], *(spec.get("workerGroupSpecs") or ())]
    for group in groups:
        pod = group["template"]["spec"]
        is_head = group is spec["headGroupSpec"]
        if not (is_head and spec.get("enableInTreeAutoscaling")):  # the autoscaler asks the API server
            pod.setdefault("automountServiceAccountToken", False)
        pod.setdefault("securityContext", dict(_POD_SECURITY))
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            container.setdefault("securityContext", copy.deepcopy(_CONTAINER_SECURITY))
        if by_hand:
            _set_environment(pod["containers"][0], _token_environment(cluster["metadata"]["name"]))
    return cluster


def has_token(manifest: Body) -> bool:
    """Whether Ray asks for a token in this cluster."""
    if ((manifest["spec"].get("authOptions") or {}).get("mode")) == "token":
        return True
    head = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return any(
        each.get("name") == "RAY_AUTH_MODE" and each.get("value") == "token" for each in head.get("env") or ()
    )


def companions(settings: ClusterSettings, facts: Facts, *, secrets: Sequence[Body] = ()) -> list[Body]:
    """What stands beside the RayCluster and goes with it: NetworkPolicy, home volume, Secrets.

    Args:
        settings: The cluster's settings.
        facts: What they depend on.
        secrets: Secrets with their random tokens, made by `token_secret`.
    """
    found: list[Body] = list(secrets)
    if not settings.insecure:
        found.append(
            network_policy(
                settings.name, facts.namespace, egress=settings.egress,
                operator_namespaces=facts.operator_namespaces, api_server=facts.api_server,
            )
        )  # fmt: skip
    if settings.lasting_home and facts.volumes:
        found.append(home_claim(settings, facts.namespace))
    return found


def home_claim(settings: ClusterSettings, namespace: str) -> Body:
    """The volume that keeps the head's home through a suspension."""
    spec: Body = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": settings.lasting_home}},
    }
    if settings.storage_class:
        spec["storageClassName"] = settings.storage_class
    return {
        "apiVersion": PVC.api_version,
        "kind": PVC.name,
        "metadata": _companion(f"{settings.name}-home", namespace, settings.name),
        "spec": spec,
    }


def token_secret(name: str, namespace: str, cluster: str, key: str) -> Body:
    """A Secret with a new random token."""
    import secrets

    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.name,
        "metadata": _companion(name, namespace, cluster),
        "type": "Opaque",
        "stringData": {key: secrets.token_urlsafe(32)},
    }


def _companion(name: str, namespace: str, cluster: str) -> Body:
    return {"name": name, "namespace": namespace, "labels": {CLUSTER_LABEL: cluster}}


def _worker_group(settings: ClusterSettings, group: WorkerGroup, facts: Facts) -> Body:
    low, high = 0, _MOST_WORKERS
    if group.autoscaling:
        low, high = group.min_workers or 0, group.max_workers or _MOST_WORKERS
    elif settings.autoscaling:  # the autoscaler leaves a group alone whose range is one number
        low = high = group.replicas
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": low,
        "maxReplicas": high,
        "rayStartParams": dict(group.ray_start_params),
        "template": _template(settings, group, "ray-worker", facts),
    }


def _template(settings: ClusterSettings, group: Group, container_name: str, facts: Facts) -> Body:
    alone = isinstance(group, WorkerGroup) and group.gpus > 0 and not settings.share_nodes
    image = group.image or settings.image or (facts.gpu_image if group.gpus else facts.image)
    container: Body = {
        "name": container_name,
        "image": image,
        "resources": _resources(group),
        "env": [{"name": name, "value": value} for name, value in {**settings.env, **group.env}.items()],
        "volumeMounts": copy.deepcopy(group.volume_mounts),
    }
    spec: Body = {
        "containers": [_without_empty(container), *copy.deepcopy(group.sidecars)],
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "nodeSelector": dict(group.node_selector),
        "affinity": {**_affinity(group), **(_ALONE if alone else {})},
        "tolerations": [*_tolerations(group), *([dict(_DEDICATED)] if alone else [])],
        "volumes": copy.deepcopy(group.volumes),
    }
    labels = {**settings.labels, **group.labels, **({WHOLE_NODE: "true"} if alone else {})}
    metadata = _without_empty({"labels": labels, "annotations": dict(group.annotations)})
    return _without_empty({"metadata": metadata, "spec": _without_empty(spec)})


def _resources(group: Group) -> Body:
    limits: Body = {"cpu": group.cpus, "memory": group.memory}
    requests = {"cpu": group.cpu_request or group.cpus, "memory": group.memory_request or group.memory}
    if group.gpus:
        limits[GPU_RESOURCE] = requests[GPU_RESOURCE] = str(group.gpus)
    return {"limits": limits, "requests": requests}


def _affinity(group: Group) -> Body:
    """Nodes of the GPU type and the price that are asked for, whatever this cloud calls them: terms are alternatives."""
    choices = [
        *([gpu_terms(group.gpu_type)] if group.gpu_type else ()),
        *([SPOT_TERMS] if group.spot else ()),
    ]
    if not choices:
        return {}
    terms = [
        {"matchExpressions": [copy.deepcopy(each) for expressions in chosen for each in expressions]}
        for chosen in itertools.product(*choices)
    ]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def _tolerations(group: Group) -> list[Body]:
    found = [*copy.deepcopy(group.tolerations)]
    found += [dict(_GPU_TOLERATION)] if group.gpus else []
    found += [dict(each) for each in SPOT_TOLERATIONS] if group.spot else []
    return found


def _add_home(settings: ClusterSettings, head: Body, facts: Facts) -> None:
    """Give the head a home, on a volume that outlives the pod where there are such, and the workbench's servers."""
    if not settings.workbench and not settings.lasting_home:
        return
    lasting = settings.lasting_home and facts.volumes
    volume: Body = {"name": "home", "emptyDir": {}}
    if lasting:
        volume = {"name": "home", "persistentVolumeClaim": {"claimName": f"{settings.name}-home"}}
    head["spec"].setdefault("volumes", []).append(volume)
    container = head["spec"]["containers"][0]
    patch = workbench_patch(settings)
    for key in ("ports", "volumeMounts"):
        if patch.get(key):
            container.setdefault(key, []).extend(patch[key])
    _set_environment(container, patch.get("env", ()))
    if patch.get("lifecycle"):
        container["lifecycle"] = patch["lifecycle"]


def _set_environment(container: Body, variables: Sequence[Body]) -> None:
    """Add variables; those that are there already are the user's."""
    known = {each["name"] for each in container.get("env") or ()}
    container.setdefault("env", []).extend(each for each in variables if each["name"] not in known)


def _token_environment(name: str) -> list[Body]:
    """What the operator sets from 1.5.1 on. It copies the container's variables to its init container itself."""
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "auth_token"}}},
    ]


def _without_empty(body: Body) -> Body:
    return {key: value for key, value in body.items() if value not in (None, [], {})}
