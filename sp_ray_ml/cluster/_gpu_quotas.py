"""GPUs of a team by type, which the API server does not count: what is asked for against what is allowed and in use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._api_errors import unless_forbidden
from sp_ray_ml.cluster._gpu_types import gpu_type_of_pod
from sp_ray_ml.cluster._kinds import ANNOTATION, POD, QUOTA, queue_of
from sp_ray_ml.cluster._plan_findings import Finding
from sp_ray_ml.cluster._pod_resources import format_amount, pod_resources
from sp_ray_ml.cluster._quota_users import how_to_raise, is_own, users
from sp_ray_ml.cluster._requests import ClusterRequest, cluster_request
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["GPUS", "check_gpu_types", "gpu_type_findings", "gpus_of"]

Body = Mapping[str, Any]

GPUS = f"{ANNOTATION}gpus"
"""At a team's quota: how many GPUs of each type, as JSON. A quota of Kubernetes knows no types: it has their sum."""
_GPU = "nvidia.com/gpu"


def gpus_of(pods: Sequence[Body]) -> dict[str, Decimal]:
    """GPUs that pods ask for, by type; of pods that name none under the empty name."""
    found: dict[str, Decimal] = {}
    for pod in pods:
        if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            continue
        if count := sum(n for name, n in pod_resources(pod["spec"]).items() if name.endswith("/gpu")):
            kind = gpu_type_of_pod(pod["spec"]) or ""
            found[kind] = found.get(kind, Decimal(0)) + count
    return found


def check_gpu_types(api: Api, cluster: Body) -> None:
    """Make sure that a team has the GPUs left that a cluster asks for, before its pods are made: nobody else does by type.

    Args:
        api: The API server.
        cluster: The RayCluster as it is to be. One of a queue is Kueue's to count.

    Raises:
        ConfigError: It has not; the message says who uses them.
    """
    request = cluster_request(cluster)
    if queue_of(cluster) or not _asked(request):
        return
    namespace = request.namespace
    quotas = unless_forbidden(lambda: api.list(QUOTA, namespace)[0]) or ()
    if not any(map(_limits, quotas)):
        return
    pods = unless_forbidden(lambda: api.list(POD, namespace)[0]) or ()
    found = [
        finding
        for quota in quotas
        for finding in gpu_type_findings(request, quota, pods)
        if finding.state in {"never", "short"}
    ]
    if found:
        raise ConfigError(
            "\n".join(finding.sentence for finding in found), where=f"{request.namespace}/{request.name}",
            hint="\n".join(dict.fromkeys(finding.remedy for finding in found)),
        )  # fmt: skip


def gpu_type_findings(
    request: ClusterRequest, quota: Body, pods: Sequence[Body], *, queued: bool = False
) -> Iterator[Finding]:
    """What a team's quota has of each type.

    Args:
        request: The request.
        quota: A ResourceQuota of its namespace.
        pods: Pods of its namespace; those of a cluster of the request's name are its own.
        queued: Whether Kueue counts the types.
    """
    limits = _limits(quota)
    if not limits:
        return
    name, raise_it = quota["metadata"]["name"], how_to_raise(quota, request.namespace)
    theirs = [pod for pod in pods if not is_own(pod, request)]
    used = gpus_of(theirs)
    for kind, (count, most) in _asked(request).items():
        if kind not in limits:
            known = ", ".join(f"{n} {each}" for each, n in limits.items())
            what = f"GPUs of type {kind}" if kind else "GPUs without saying of which type"
            yield Finding(
                "quota", "never", f"quota {name} allows {known}; the cluster asks for {what}",
                "Ask for one of these types: --worker-gpu-type, gpu_type in a file",
            )  # fmt: skip
            continue
        limit, now = limits[kind], used.get(kind, Decimal(0))
        allows = f"quota {name} allows {format_amount(_GPU, limit)} of type {kind}"
        # Where this is all that the team has, the API server stops the autoscaler by the sum.
        unstopped = not queued and limit < sum(limits.values())
        if count > limit:
            yield Finding(
                "quota",
                "never",
                f"{allows}, the cluster alone asks for {count}",
                f"Ask for fewer, or {raise_it}",
            )
        elif unstopped and (most is None or most > limit):
            at_most = "as many as Ray wants" if most is None else str(most)
            yield Finding(
                "quota", "never",
                f"{allows}, at its most the cluster alone asks for {at_most}, and nobody would stop its autoscaler",
                f"Lower max_workers, or {raise_it}" if most is not None else f"Give max_workers, or {raise_it}",
            )  # fmt: skip
        elif count and count + now > limit:
            by = users(f"requests.{_GPU}", [pod for pod in theirs if kind in gpus_of([pod])])
            yield Finding(
                "quota", "short",
                f"{allows}, {now} are used{by}, the cluster asks for {count}: short by {count + now - limit}",
                f"Ask for fewer, free some (sp-ray get cluster -n {request.namespace}), or {raise_it}",
            )  # fmt: skip
        elif unstopped and most is not None and most + now > limit:
            yield Finding(
                "quota", "ok",
                f"{allows}, {now} are used: at its most the cluster asks for {most}, and its autoscaler could go beyond",
                f"Lower max_workers, or {raise_it}",
            )  # fmt: skip


def _limits(quota: Body) -> dict[str, Decimal]:
    text = (quota["metadata"].get("annotations") or {}).get(GPUS)
    return {kind: Decimal(count) for kind, count in json.loads(text or "{}").items()}


def _asked(request: ClusterRequest) -> dict[str, tuple[Decimal, Decimal | None]]:
    """GPUs by type, at first and at their most (None without a bound)."""
    found: dict[str, tuple[Decimal, Decimal | None]] = {}
    for group in request.groups:
        for kind, each in gpus_of([{"spec": group.spec}]).items():
            count, most = found.get(kind, (Decimal(0), Decimal(0)))
            more = None if group.most is None or most is None else most + each * group.most
            found[kind] = (count + each * group.replicas, more)
    return found
