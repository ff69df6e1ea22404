"""A request against ResourceQuotas and LimitRanges, by the rules of Kubernetes' admission."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._gpu_quotas import gpu_type_findings
from sp_ray_ml.cluster._plan_findings import Finding
from sp_ray_ml.cluster._pod_resources import format_amount, pod_resources, quota_use
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.cluster._quota_users import amount_of, how_to_raise, is_own, users
from sp_ray_ml.cluster._requests import ClusterRequest, GroupRequest, all_containers

__all__ = ["limit_range_findings", "quota_findings"]

Body = Mapping[str, Any]
_COMPUTE = ("cpu", "memory")


# --- quotas -------------------------------------------------------------------------------------------------------


def quota_findings(
    request: ClusterRequest,
    quotas: Sequence[Body],
    pods: Sequence[Body] | None = None,
    *,
    exists: bool = False,
    queued: bool = False,
) -> Iterator[Finding]:
    """What ResourceQuotas say of a request.

    Args:
        request: The request.
        quotas: ResourceQuotas of its namespace.
        pods: Pods of its namespace, to name who uses a quota; those of a cluster of the request's name are its own.
        exists: Whether the cluster is there, so that its objects beside pods are counted already.
        queued: Whether it waits in a queue of Kueue's, which counts GPUs by type.
    """
    for quota in quotas:
        found = [
            *_of_quota(request, quota, pods or (), exists),
            *gpu_type_findings(request, quota, pods or (), queued=queued),
        ]
        if found:
            yield from found
        else:
            yield Finding("quota", "ok", f"quota {quota['metadata']['name']} has room for it")


def _of_quota(request: ClusterRequest, quota: Body, pods: Sequence[Body], exists: bool) -> Iterator[Finding]:
    name, namespace = quota["metadata"]["name"], request.namespace
    groups = [group for group in request.groups if _in_scope(quota, group.spec)]
    scoped = bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))
    theirs = [pod for pod in pods if not is_own(pod, request) and _in_scope(quota, pod["spec"])]
    mine = [pod for pod in pods if is_own(pod, request) and _in_scope(quota, pod["spec"])]
    used_now = (quota.get("status") or {}).get("used") or {}
    for resource, text in (quota["spec"].get("hard") or {}).items():
        if missing := _unspecified(resource, groups):
            yield Finding(
                "quota", "never", f"quota {name} wants every container to say {resource}: {', '.join(missing)} do not",
                f"Give them {resource.replace('.', ' of ')}, or the namespace a LimitRange with defaults",
            )  # fmt: skip
            continue
        hard, used = parse_quantity(text), parse_quantity(used_now.get(resource, 0))
        used = max(Decimal(0), used - sum((quota_use(pod, resource) for pod in mine), Decimal(0)))
        if exists and resource in request.objects:
            continue
        asked, most = _asked(resource, request, groups, scoped)
        what = f"quota {name} allows {amount_of(resource, hard)} ({resource})"
        raise_it = how_to_raise(quota, namespace)
        if asked > hard:
            yield Finding(
                "quota", "never", f"{what}, the cluster alone asks for {amount_of(resource, asked)}",
                f"Ask for less, or {raise_it}",
            )  # fmt: skip
        elif asked and asked + used > hard:
            by = users(resource, theirs)
            yield Finding(
                "quota", "short",
                f"{what}, {amount_of(resource, used)} are used{by}, the cluster asks for "
                f"{amount_of(resource, asked)}: short by {amount_of(resource, asked + used - hard)}",
                f"Ask for less, free some (sp-ray get cluster -n {namespace}), or {raise_it}",
            )  # fmt: skip
        elif most is not None and most + used > hard:
            yield Finding(
                "quota", "ok",
                f"{what}: at its most the cluster asks for {amount_of(resource, most)}, "
                f"so the autoscaler is stopped {amount_of(resource, most + used - hard)} before that",
                f"Lower max_workers, or {raise_it}",
            )  # fmt: skip


def _asked(
    resource: str, request: ClusterRequest, groups: Sequence[GroupRequest], scoped: bool
) -> tuple[Decimal, Decimal | None]:
    """How much of a quota's resource the cluster takes at first, and at its most (None without a bound)."""
    if not scoped and resource in request.objects:
        amount = request.objects[resource]
        return amount, amount
    each = [(quota_use({"spec": group.spec}, resource), group) for group in groups]
    now = sum((use * group.replicas for use, group in each), Decimal(0))
    if any(use and group.most is None for use, group in each):
        return now, None
    return now, sum((use * (group.most or 0) for use, group in each), Decimal(0))


def _unspecified(resource: str, groups: Sequence[GroupRequest]) -> list[str]:
    """Containers without an amount that a quota of CPU or memory makes obligatory."""
    which, _, name = resource.partition(".")
    if which not in {"requests", "limits"}:
        which, name = "requests", resource
    if name not in _COMPUTE:
        return []
    found = [
        container["name"]
        for group in groups
        for container in all_containers(group.spec)
        if name not in ((container.get("resources") or {}).get(which) or {})
    ]
    return list(dict.fromkeys(found))


def _in_scope(quota: Body, spec: Body) -> bool:
    """Whether a quota counts a pod."""
    scopes = [{"scopeName": name, "operator": "Exists"} for name in quota["spec"].get("scopes") or ()]
    scopes += (quota["spec"].get("scopeSelector") or {}).get("matchExpressions") or ()
    return all(_meets(scope, spec) for scope in scopes)


def _meets(scope: Body, spec: Body) -> bool:
    name, values = scope["scopeName"], scope.get("values") or ()
    if name in {"Terminating", "NotTerminating"}:
        ends = spec.get("activeDeadlineSeconds") is not None
        return ends if name == "Terminating" else not ends
    if name in {"BestEffort", "NotBestEffort"}:
        asks = any(
            pod_resources(spec, which).get(each) for which in ("requests", "limits") for each in _COMPUTE
        )
        return asks if name == "NotBestEffort" else not asks
    if name == "PriorityClass":
        given = str(spec.get("priorityClassName") or "")
        chosen = {
            "In": given in values, "NotIn": given not in values, "Exists": bool(given), "DoesNotExist": not given,
        }  # fmt: skip
        return chosen[scope["operator"]]
    # CrossNamespacePodAffinity: pods with a term that names other namespaces.
    affinity = spec.get("affinity") or {}
    return any("namespaces" in str(affinity.get(kind)) for kind in ("podAffinity", "podAntiAffinity"))


# --- limit ranges -------------------------------------------------------------------------------------------------


def limit_range_findings(
    request: ClusterRequest, limit_ranges: Sequence[Body], companions: Sequence[Body] = ()
) -> Iterator[Finding]:
    """What LimitRanges say of a request.

    Args:
        request: The request, with their defaults filled in.
        limit_ranges: LimitRanges of its namespace.
        companions: What is made beside it: claims of volumes have limits, too.
    """
    for limit_range in limit_ranges:
        name, found = limit_range["metadata"]["name"], []
        for item in limit_range["spec"].get("limits") or ():
            for subject, limits, requests in _subjects(item["type"], request, companions):
                found += [f"{subject} {problem}" for problem in _breaches(item, limits, requests)]
        if found:
            yield Finding(
                "limits", "never", f"limit range {name}: {'; '.join(dict.fromkeys(found))}",
                f"Keep within it: kubectl describe limitrange {name} -n {request.namespace}",
            )  # fmt: skip
        else:
            yield Finding("limits", "ok", f"limit range {name} is kept")


Amounts = Mapping[str, Decimal]


def _subjects(
    kind: str, request: ClusterRequest, companions: Sequence[Body]
) -> Iterator[tuple[str, Amounts, Amounts]]:
    """What a LimitRange's item looks at: name, limits and requests."""
    if kind == "Container":
        for group in request.groups:
            for container in all_containers(group.spec):
                resources = container.get("resources") or {}
                limits, requests = (
                    {name: parse_quantity(text) for name, text in (resources.get(which) or {}).items()}
                    for which in ("limits", "requests")
                )
                yield f"{group.component}'s {container['name']}", limits, requests
    elif kind == "Pod":
        for group in request.groups:
            yield f"{group.component}'s pod", group.limits, group.requests
    elif kind == "PersistentVolumeClaim":
        for body in companions:
            if body["kind"] == kind:
                size = parse_quantity(body["spec"]["resources"]["requests"]["storage"])
                yield f"volume {body['metadata']['name']}", {"storage": size}, {"storage": size}


def _breaches(item: Body, limits: Amounts, requests: Amounts) -> Iterator[str]:
    for name, text in (item.get("min") or {}).items():
        least = parse_quantity(text)
        if name not in requests:
            yield f"says no {name}, at least {format_amount(name, least)} are wanted"
        elif min(requests[name], limits.get(name, requests[name])) < least:
            yield f"asks for {format_amount(name, requests[name])}, at least {format_amount(name, least)} are wanted"
    for name, text in (item.get("max") or {}).items():
        most = parse_quantity(text)
        if name not in limits:
            yield f"has no limit of {name}, at most {format_amount(name, most)} are allowed"
        elif max(limits[name], requests.get(name, limits[name])) > most:
            yield f"has a limit of {format_amount(name, limits[name])}, at most {format_amount(name, most)} are allowed"
    for name, text in (item.get("maxLimitRequestRatio") or {}).items():
        ratio, asked, limit = parse_quantity(text), requests.get(name), limits.get(name)
        if not asked or not limit:
            yield f"must say both limit and request of {name}"
        elif limit / asked > ratio:
            yield f"has a limit of {name} that is {limit / asked:.3g} times its request, at most {ratio:f} are allowed"
