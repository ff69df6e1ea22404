"""Whether a pod may run on a node: labels, affinity, taints and size, as the scheduler has it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._pod_resources import pod_resources
from sp_ray_ml.cluster._quantity import parse_quantity

__all__ = ["allocatable", "is_usable", "matches", "too_small", "unmet_requirement", "untolerated"]

Body = Mapping[str, Any]
_OWN_TAINTS = "node.kubernetes.io/"


def is_usable(node: Body) -> bool:
    """Whether a node is ready and not cordoned."""
    ready = next(
        (each for each in (node.get("status") or {}).get("conditions") or () if each["type"] == "Ready"), None
    )
    return not (node.get("spec") or {}).get("unschedulable") and (ready is None or ready["status"] == "True")


def allocatable(node: Body, resource: str) -> Decimal:
    """How much of a resource a node has for pods."""
    status = node.get("status") or {}
    return parse_quantity((status.get("allocatable") or status.get("capacity") or {}).get(resource, 0))


def unmet_requirement(spec: Body, node: Body) -> Body | None:
    """The first requirement on labels that a node does not meet: `key`, `operator`, `values`; None if it meets all.

    Args:
        spec: The pod's `spec`.
        node: The node.
    """
    labels = node["metadata"].get("labels") or {}
    for key, value in (spec.get("nodeSelector") or {}).items():
        wanted = {"key": key, "operator": "In", "values": [value]}
        if not matches(wanted, labels):
            return wanted
    terms = _terms(spec)
    unmet = []
    for term in terms:
        fields = {"metadata.name": node["metadata"]["name"]}
        failing = [each for each in term.get("matchExpressions") or () if not matches(each, labels)]
        failing += [each for each in term.get("matchFields") or () if not matches(each, fields)]
        if not failing:
            return None
        unmet.append((len(failing), failing[0]))
    return min(unmet, key=lambda pair: pair[0])[1] if unmet else None


def _terms(spec: Body) -> list[Body]:
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return list(required.get("nodeSelectorTerms") or ())


def matches(requirement: Body, labels: Mapping[str, str]) -> bool:
    """Whether labels meet one requirement of a node selector."""
    key, operator = requirement["key"], requirement["operator"]
    values: list[str] = requirement.get("values") or []
    value = labels.get(key)
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    if value is None or not value.lstrip("-").isdigit():
        return False
    return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])


def untolerated(spec: Body, node: Body) -> Body | None:
    """The first taint of a node that keeps a pod off; those of a node in trouble are left to `is_usable`."""
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("effect") not in {"NoSchedule", "NoExecute"} or taint["key"].startswith(_OWN_TAINTS):
            continue
        if not any(_tolerates(each, taint) for each in spec.get("tolerations") or ()):
            found: Body = taint
            return found
    return None


def _tolerates(toleration: Body, taint: Body) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if not toleration.get("key"):
        return bool(toleration.get("operator") == "Exists")
    if toleration["key"] != taint["key"]:
        return False
    return toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (
        taint.get("value") or ""
    )


def too_small(spec: Body, node: Body) -> list[str]:
    """Resources of which an empty node has too little for a pod."""
    return [name for name, amount in pod_resources(spec).items() if amount > allocatable(node, name)]
