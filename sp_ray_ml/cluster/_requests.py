"""What a RayCluster asks of Kubernetes: its pods as the operator will make them, and what quotas count beside pods."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, GROUP_LABEL, NODE_TYPE_LABEL, RAY_CLUSTER, kind_of
from sp_ray_ml.cluster._pod_resources import WHOLE_NODE, pod_resources, takes_whole_node
from sp_ray_ml.cluster._quantity import parse_quantity

__all__ = [
    "ClusterRequest",
    "GroupRequest",
    "all_containers",
    "cluster_request",
    "container_defaults",
    "pod_body",
]

Body = Mapping[str, Any]
Amounts = dict[str, Decimal]

_NO_BOUND = 100_000
"""A `maxReplicas` from here on bounds nothing: our own manifests have it where nobody names one, the CRD 2**31 - 1."""
_STORAGE = "requests.storage"


def _both(cpu: str, memory: str) -> dict[str, dict[str, str]]:
    return {which: {"cpu": cpu, "memory": memory} for which in ("limits", "requests")}


_WAIT = {"name": "wait-gcs-ready", "resources": _both("200m", "256Mi")}
"""Init container that the operator puts before a worker's others."""
_AUTOSCALER = {"name": "autoscaler", "resources": _both("500m", "512Mi")}
"""Sidecar that it gives the head where Ray's autoscaler is on."""


@dataclass(frozen=True)
class GroupRequest:
    """The head's pod, or the pods of one worker group.

    Attributes:
        name: The worker group's name; empty for the head.
        spec: Each pod's spec as the operator will make it, defaults of LimitRanges filled in.
        labels: Each pod's labels.
        annotations: Each pod's annotations.
        replicas: How many pods there will be.
        most: How many the autoscaler may make of them; None without a bound.
        requests: What each pod asks for, `cpu` in CPUs, `memory` in bytes, `pods` 1.
        limits: What it is limited to, likewise.
    """

    name: str
    spec: Body
    labels: Body
    annotations: Body
    replicas: int
    most: int | None
    requests: Amounts
    limits: Amounts

    @property
    def component(self) -> str:
        """`head`, or `worker group NAME`."""
        return f"worker group {self.name}" if self.name else "head"


@dataclass(frozen=True)
class ClusterRequest:
    """All that a cluster asks for.

    Attributes:
        name: Its name.
        namespace: Its namespace.
        groups: The head, then the worker groups.
        objects: How many objects of a kind it makes, by the names that quotas have for them (`services`,
            `count/secrets`), and `requests.storage` in bytes.
    """

    name: str
    namespace: str
    groups: tuple[GroupRequest, ...]
    objects: Mapping[str, Decimal] = field(default_factory=dict)

    def pods(self, *, most: bool = False) -> int | None:
        """How many pods; None without a bound."""
        counts = [group.most if most else group.replicas for group in self.groups]
        return None if None in counts else sum(count or 0 for count in counts)

    def total(self, which: str = "requests", *, most: bool = False) -> Amounts | None:
        """Sum over all pods, of `requests` or `limits`; None without a bound."""
        total: Amounts = {}
        for group in self.groups:
            count = group.most if most else group.replicas
            if count is None:
                return None
            for name, amount in (group.requests if which == "requests" else group.limits).items():
                total[name] = total.get(name, Decimal(0)) + amount * count
        return total


def cluster_request(
    manifest: Body, companions: Sequence[Body] = (), *, limit_ranges: Sequence[Body] = ()
) -> ClusterRequest:
    """What a RayCluster and what stands beside it ask for.

    Args:
        manifest: The RayCluster. Whether it is suspended does not matter: it is to run some day.
        companions: Objects that are made with it.
        limit_ranges: LimitRanges of its namespace, for their defaults.
    """
    spec, meta = manifest["spec"], manifest["metadata"]
    defaults = container_defaults(limit_ranges)
    head = spec["headGroupSpec"]
    sidecar = None
    if spec.get("enableInTreeAutoscaling"):
        given = spec.get("autoscalerOptions") or {}
        named = ("resources", "securityContext", "image", "env", "envFrom", "volumeMounts")
        sidecar = {**_AUTOSCALER, **{key: given[key] for key in named if given.get(key)}}
    groups = [_group(meta["name"], "", head["template"], 1, 1, defaults, sidecar=sidecar)]
    for group in spec.get("workerGroupSpecs") or ():
        hosts = int(group.get("numOfHosts") or 1)
        low, high = int(group.get("minReplicas") or 0), int(group.get("maxReplicas", 2**31 - 1))
        replicas = int(group["replicas"]) if group.get("replicas") is not None else low
        replicas = max(low, min(replicas, high))
        most: int | None = replicas * hosts
        if spec.get("enableInTreeAutoscaling"):
            most = high * hosts if high < _NO_BOUND else None
        groups.append(
            _group(meta["name"], group["groupName"], group["template"], replicas * hosts, most, defaults)
        )
    return ClusterRequest(
        meta["name"], meta.get("namespace") or "default", tuple(groups), _objects(spec, companions)
    )


def _group(
    cluster: str,
    name: str,
    template: Body,
    replicas: int,
    most: int | None,
    defaults: Mapping[str, Mapping[str, str]],
    *,
    sidecar: Body | None = None,
) -> GroupRequest:
    pod = copy.deepcopy(dict(template["spec"]))
    first = pod["containers"][0]
    if name:
        like = {key: first[key] for key in ("image", "securityContext") if first.get(key)}
        pod["initContainers"] = [*(pod.get("initContainers") or ()), copy.deepcopy({**_WAIT, **like})]
    if sidecar is not None:
        image = {"image": first["image"]} if first.get("image") else {}
        pod["containers"] = [*pod["containers"], copy.deepcopy({**image, **sidecar})]
    for container in all_containers(pod):
        _fill(container, defaults)
    meta = template.get("metadata") or {}
    labels = {
        **(meta.get("labels") or {}),
        CLUSTER_LABEL: cluster,
        NODE_TYPE_LABEL: "worker" if name else "head",
        GROUP_LABEL: name or "headgroup",
    }
    requests = {**pod_resources(pod), "pods": Decimal(1)}
    if takes_whole_node(pod):
        requests[WHOLE_NODE] = Decimal(1)
    limits = pod_resources(pod, "limits")
    return GroupRequest(name, pod, labels, meta.get("annotations") or {}, replicas, most, requests, limits)


def all_containers(pod_spec: Body) -> Iterator[dict[str, Any]]:
    """A pod's containers, then its init containers."""
    yield from pod_spec["containers"]
    yield from pod_spec.get("initContainers") or ()


def container_defaults(limit_ranges: Sequence[Body]) -> dict[str, dict[str, str]]:
    """What LimitRanges give containers that say nothing, `limits` and `requests`; the first one wins."""
    found: dict[str, dict[str, str]] = {"limits": {}, "requests": {}}
    for limit_range in limit_ranges:
        for item in limit_range["spec"].get("limits") or ():
            if item.get("type") == "Container":
                found["limits"] = {**(item.get("default") or {}), **found["limits"]}
                found["requests"] = {**(item.get("defaultRequest") or {}), **found["requests"]}
    return found


def _fill(container: dict[str, Any], defaults: Mapping[str, Mapping[str, str]]) -> None:
    """Give a container what the API server gives it: requests from its own limits first, then a LimitRange's."""
    resources = dict(container.get("resources") or {})
    limits = resources.get("limits") or {}
    requests = {**limits, **(resources.get("requests") or {})}
    container["resources"] = {
        **resources,
        "limits": {**defaults["limits"], **limits},
        "requests": {**defaults["requests"], **requests},
    }


def pod_body(request: ClusterRequest, group: GroupRequest) -> dict[str, Any]:
    """A pod much as the operator will make it, for the API server to check without keeping it."""
    kind = f"{group.name}-worker" if group.name else "head"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{request.name}-{kind}-",
            "namespace": request.namespace,
            "labels": dict(group.labels),
            "annotations": dict(group.annotations),
        },
        "spec": dict(group.spec),
    }


def _objects(spec: Body, companions: Sequence[Body]) -> dict[str, Decimal]:
    """Objects beside pods, by each name that quotas have for them."""
    counts: Counter[str] = Counter({f"count/{RAY_CLUSTER.plural}.{RAY_CLUSTER.group}": 1})
    storage: Amounts = {}
    hosts = any(int(group.get("numOfHosts") or 1) > 1 for group in spec.get("workerGroupSpecs") or ())
    counts.update(dict.fromkeys(("services", "count/services"), 2 if hosts else 1))
    auth = spec.get("authOptions") or {}
    if auth.get("mode") == "token" and not auth.get("secretName"):
        counts.update(("secrets", "count/secrets"))
    if spec.get("enableInTreeAutoscaling"):
        counts.update(
            (
                "count/serviceaccounts",
                "count/roles.rbac.authorization.k8s.io",
                "count/rolebindings.rbac.authorization.k8s.io",
            )
        )
    for body in companions:
        kind = kind_of(body)
        counts.update([f"count/{kind.plural}{f'.{kind.group}' if kind.group else ''}"])
        if not kind.group:
            counts.update([kind.plural])
        if kind.name == "PersistentVolumeClaim":
            size = parse_quantity(body["spec"]["resources"]["requests"]["storage"])
            storage[_STORAGE] = storage.get(_STORAGE, Decimal(0)) + size
            if name := body["spec"].get("storageClassName"):
                own = f"{name}.storageclass.storage.k8s.io"
                storage[f"{own}/{_STORAGE}"] = storage.get(f"{own}/{_STORAGE}", Decimal(0)) + size
                counts.update([f"{own}/persistentvolumeclaims"])
    return {**{name: Decimal(count) for name, count in counts.items()}, **storage}
