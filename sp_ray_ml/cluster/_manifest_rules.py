"""What a RayCluster must keep to beyond its schema: rules of the operator and of pods, broken only in an Event later.

Each rule yields the path in the manifest and what is wrong there. What is of the wrong type or missing is None or
absent in the manifest that they look at: the schema's check has named it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from sp_ray_ml._names import KeyPath, near_match
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.cluster.settings import check_name

__all__ = ["broken_rules"]

Body = Mapping[str, Any]
Broken = Iterator[tuple[KeyPath, str]]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_GROUP_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_V2 = "RAY_enable_autoscaler_v2"
_GATES = {
    "networkPolicy": (
        "RayClusterNetworkPolicy", "; sp-ray makes a NetworkPolicy of its own, with --egress for what pods may reach",
    ),
    "tlsOptions": ("RayClusterMTLS", ""),
    "historyServerOptions": ("RayClusterHistoryServer", ""),
}  # fmt: skip
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_HEAD: KeyPath = ("spec", "headGroupSpec")


def broken_rules(manifest: Body) -> Broken:
    """Every rule that a RayCluster breaks."""
    yield from _metadata(manifest.get("metadata") or {})
    spec = manifest.get("spec") or {}
    groups = [(index, group) for index, group in enumerate(spec.get("workerGroupSpecs") or ()) if group]
    yield from _group(spec.get("headGroupSpec") or {}, _HEAD, "the head")
    for index, group in groups:
        path: KeyPath = ("spec", "workerGroupSpecs", index)
        yield from _group(group, path, f"worker group {group.get('groupName')}")
        yield from _worker_group(spec, group, path)
    seen: set[str] = set()
    for index, group in groups:
        if not (name := group.get("groupName")):
            continue
        if name in seen:
            yield (
                ("spec", "workerGroupSpecs", index, "groupName"),
                f"a second worker group {name}: KubeRay would make and delete their pods for ever",
            )
        seen.add(name)
    yield from _autoscaling(spec)
    yield from _authentication(spec)
    yield from _fault_tolerance(manifest)
    for name, (gate, instead) in _GATES.items():
        if spec.get(name) is not None:
            yield (
                ("spec", name),
                f"needs KubeRay's feature gate {gate}, which is off unless an operator is told so{instead}",
            )
    if spec.get("managedBy") not in (None, *_MANAGERS):
        yield ("spec", "managedBy"), f"expected {' or '.join(_MANAGERS)}, got {spec['managedBy']}"


def _metadata(meta: Body) -> Broken:
    if not meta.get("name"):
        yield ("metadata", "name"), "required: a cluster has a name"
        return
    try:
        check_name(str(meta["name"]))
    except ValueError as error:
        yield ("metadata", "name"), str(error)


# --- head and worker groups ---------------------------------------------------------------------------------------


def _group(group: Body, path: KeyPath, what: str) -> Broken:
    params = group.get("rayStartParams") or {}
    if group.get("resources") and any(params.get(name) for name in _RESOURCES):
        yield (*path, "resources"), f"{what} has resources in rayStartParams, too: KubeRay takes one of both"
    if "labels" in params:
        yield (
            (*path, "rayStartParams", "labels"),
            f"KubeRay takes labels of {what} beside rayStartParams, as labels",
        )
    pod = _pod_spec(group)
    if pod is not None:
        yield from _pod(pod, (*path, "template", "spec"), what)


def _pod_spec(group: Body) -> dict[str, Any] | None:
    """The spec of a group's pods; None where the group has no template."""
    template = group.get("template")
    return None if template is None else template.get("spec") or {}


def _worker_group(spec: Body, group: Body, path: KeyPath) -> Broken:
    name = group.get("groupName")
    if name and (not _GROUP_NAME.fullmatch(name.lower()) or len(name) > 63):
        yield (
            (*path, "groupName"),
            f"{name!r} cannot be part of a pod's name: letters, digits, '-' and '.' can",
        )
    for key in ("replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"):
        if (group.get(key) or 0) < 0:
            yield (*path, key), f"must not be negative, got {group[key]}"
    if group.get("numOfHosts") is not None and group["numOfHosts"] < 1:
        yield (*path, "numOfHosts"), f"must be 1 or more, got {group['numOfHosts']}"
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if low is not None and high is not None and low > high:
        yield (*path, "minReplicas"), f"minReplicas {low} is more than maxReplicas {high}"
    if group.get("suspend") and spec.get("enableInTreeAutoscaling"):
        yield (*path, "suspend"), "a worker group cannot be suspended where Ray's autoscaler is on"
    if group.get("idleTimeoutSeconds") is not None and not _is_v2(spec):
        yield (*path, "idleTimeoutSeconds"), "needs Ray's second autoscaler: autoscalerOptions: {version: v2}"
    if group.get("priority"):
        yield from _needs_ray(spec, (2, 56, 0), (*path, "priority"), "priority")


def _pod(pod: Body, path: KeyPath, what: str) -> Broken:
    if pod.get("containers", ()) in ([], ()):
        yield (*path, "containers"), f"{what} has no container: the first one runs Ray"
    names: set[str] = set()
    volumes = {volume.get("name") for volume in pod.get("volumes") or ()}
    for key in ("initContainers", "containers"):
        for index, container in enumerate(pod.get(key) or ()):
            at = (*path, key, index)
            if (name := container.get("name")) is None:
                continue
            if not _LABEL.fullmatch(name) or len(name) > 63:
                yield (*at, "name"), f"{name!r} is no container's name: small letters, digits and '-' are"
            if name in names:
                yield (*at, "name"), f"a second container {name}"
            names.add(name)
            yield from _resources(container.get("resources") or {}, (*at, "resources"))
            for number, mount in enumerate(container.get("volumeMounts") or ()):
                if mount.get("name") and mount["name"] not in volumes:
                    near = near_match(str(mount.get("name")), sorted(map(str, volumes)))
                    yield (
                        (*at, "volumeMounts", number, "name"),
                        f"there is no volume {mount.get('name')} in this pod{near}",
                    )


def _resources(resources: Body, path: KeyPath) -> Broken:
    amounts: dict[str, dict[str, Decimal]] = {"limits": {}, "requests": {}}
    for which, found in amounts.items():
        for name, text in (resources.get(which) or {}).items():
            if text is None:
                continue
            try:
                found[name] = parse_quantity(text)
            except ValueError as error:
                yield (*path, which, name), str(error)
                continue
            if found[name] < 0:
                yield (*path, which, name), f"must not be negative, got {text}"
    limits, requests = amounts["limits"], amounts["requests"]
    for name, amount in requests.items():
        given = resources["requests"][name]
        own = "/" in name  # an extended resource, a GPU say: it is given whole, and to one
        if own and name not in limits:
            yield (*path, "requests", name), f"needs the same limit: {name} is given whole"
        elif name in limits and (amount > limits[name] or (own and amount != limits[name])):
            word = "must be the limit" if own else "is more than the limit"
            yield (*path, "requests", name), f"{given} {word}, {resources['limits'][name]}"
    for which, found in amounts.items():
        for name, amount in found.items():
            if "/" in name and amount != int(amount):
                yield (*path, which, name), f"must be a whole number, got {resources[which][name]}"


# --- the whole cluster --------------------------------------------------------------------------------------------


def _is_v2(spec: Body) -> bool:
    if (spec.get("autoscalerOptions") or {}).get("version") == "v2":
        return bool(spec.get("enableInTreeAutoscaling"))
    return _head_environment(spec).get(_V2) in {"1", "true"}


def _head_environment(spec: Body) -> dict[str, Any]:
    containers = (_pod_spec(spec.get("headGroupSpec") or {}) or {}).get("containers") or [{}]
    return {each.get("name"): each.get("value") for each in containers[0].get("env") or ()}


def _autoscaling(spec: Body) -> Broken:
    options = spec.get("autoscalerOptions") or {}
    environment: KeyPath = (*_HEAD, "template", "spec", "containers", 0, "env")
    switched = _V2 in _head_environment(spec)
    if not spec.get("enableInTreeAutoscaling"):
        if switched and _is_v2(spec):
            yield environment, f"{_V2} is set, but enableInTreeAutoscaling is not true"
    else:
        if switched and options.get("version"):
            yield environment, f"{_V2} and autoscalerOptions.version are both set: keep the latter"
        if _is_v2(spec):
            pods: list[tuple[KeyPath, Body]] = [(_HEAD, spec.get("headGroupSpec") or {})]
            pods += [
                (("spec", "workerGroupSpecs", i), g) for i, g in enumerate(spec.get("workerGroupSpecs") or ())
            ]
            for path, group in pods:
                policy = (_pod_spec(group or {}) or {}).get("restartPolicy")
                if policy not in (None, "", "Never"):
                    yield (
                        (*path, "template", "spec", "restartPolicy"),
                        f"must be Never, or left out, with Ray's second autoscaler, got {policy}",
                    )
    if (options.get("idleTimeoutSeconds") or 0) < 0:
        at = ("spec", "autoscalerOptions", "idleTimeoutSeconds")
        yield at, f"must not be negative, got {options['idleTimeoutSeconds']}"
    yield from _resources(options.get("resources") or {}, ("spec", "autoscalerOptions", "resources"))


def _authentication(spec: Body) -> Broken:
    options = spec.get("authOptions")
    if options is None:
        return
    at = ("spec", "authOptions")
    by_token = options.get("mode", "token") == "token"
    if by_token:
        yield from _needs_ray(spec, (2, 52, 0), (*at, "mode"), "authOptions.mode: token")
    if options.get("enableK8sTokenAuth"):
        if not by_token:
            yield (*at, "enableK8sTokenAuth"), "needs mode: token"
        else:
            yield from _needs_ray(spec, (2, 55, 0), (*at, "enableK8sTokenAuth"), "enableK8sTokenAuth")
        if options.get("secretName"):
            yield (*at, "secretName"), "goes not together with enableK8sTokenAuth"


def _needs_ray(spec: Body, least: tuple[int, int, int], path: KeyPath, what: str) -> Broken:
    wanted = ".".join(map(str, least))
    given = str(spec.get("rayVersion") or "")
    if not given:
        yield ("spec", "rayVersion"), f"required by {what}: Ray's version, {wanted} or later"
        return
    numbers = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", given)
    if numbers is None:
        yield ("spec", "rayVersion"), f"{given!r} is no version such as {wanted}, which {what} requires"
    elif tuple(int(number or 0) for number in numbers.groups()) < least:
        yield path, f"needs Ray {wanted} or later, rayVersion is {given}"


def _fault_tolerance(manifest: Body) -> Broken:
    spec, notes = manifest.get("spec") or {}, (manifest.get("metadata") or {}).get("annotations") or {}
    options, environment = spec.get("gcsFaultToleranceOptions"), _head_environment(spec)
    params = (spec.get("headGroupSpec") or {}).get("rayStartParams") or {}
    at: KeyPath = (*_HEAD, "template", "spec", "containers", 0, "env")
    enabled = notes.get("ray.io/ft-enabled")
    if options is None:
        if str(enabled).lower() != "true" and "RAY_REDIS_ADDRESS" in environment:
            yield (
                at,
                "RAY_REDIS_ADDRESS is set, but gcsFaultToleranceOptions is not: KubeRay wants the address there",
            )
    else:
        if enabled:
            yield (
                ("metadata", "annotations", "ray.io/ft-enabled"),
                "gcsFaultToleranceOptions is set, too: keep that",
            )
        for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
            if name in environment:
                yield at, f"{name} is set: with gcsFaultToleranceOptions it belongs there"
        if params.get("redis-password"):
            yield (
                (*_HEAD, "rayStartParams", "redis-password"),
                "belongs in gcsFaultToleranceOptions.redisPassword",
            )
        if notes.get("ray.io/external-storage-namespace"):
            yield (
                ("metadata", "annotations", "ray.io/external-storage-namespace"),
                "belongs in gcsFaultToleranceOptions.externalStorageNamespace",
            )
        if options.get("backend", "redis") == "redis" and options.get("storage") is not None:
            yield ("spec", "gcsFaultToleranceOptions", "storage"), "is for the backend rocksdb only"
    if "REDIS_USERNAME" in environment:
        yield at, "REDIS_USERNAME is set: it belongs in gcsFaultToleranceOptions.redisUsername"
    if params.get("redis-username"):
        yield (
            (*_HEAD, "rayStartParams", "redis-username"),
            "belongs in gcsFaultToleranceOptions.redisUsername",
        )
