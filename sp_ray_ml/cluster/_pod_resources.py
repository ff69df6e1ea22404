"""What a pod asks of nodes and quotas, as the scheduler counts it, and how amounts are said to people."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._quantity import format_bytes, format_number, parse_quantity

__all__ = ["WHOLE_NODE", "format_amount", "pod_resources", "quota_use", "takes_whole_node"]

Body = Mapping[str, Any]
_BYTES = ("memory", "storage", "ephemeral-storage")
WHOLE_NODE = "sp-ray/whole-node"
"""Label of pods of which each has a node of its own, and an amount of which each node has one."""
_NAMES = {
    WHOLE_NODE: "node of its own",
    "cpu": "CPU",
    "nvidia.com/gpu": "GPU",
    "amd.com/gpu": "AMD GPU",
    "pods": "pod",
    "count/pods": "pod",
}


def pod_resources(spec: Body, which: str = "requests") -> dict[str, Decimal]:
    """What a pod asks for: the sum of its containers, or its greatest init container where that is more.

    Args:
        spec: The pod's `spec`.
        which: `requests` or `limits`; a missing request is the limit, as Kubernetes has it.
    """
    total: dict[str, Decimal] = {}
    for container in spec["containers"]:
        _add(total, _asked(container, which))
    # Init containers that restart are sidecars: they run beside the init containers after them and all others.
    beside: dict[str, Decimal] = {}
    greatest: dict[str, Decimal] = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(beside, _asked(container, which))
        else:
            for name, amount in _add(dict(beside), _asked(container, which)).items():
                greatest[name] = max(greatest.get(name, Decimal(0)), amount)
    _add(total, beside)
    for name, amount in greatest.items():
        total[name] = max(total.get(name, Decimal(0)), amount)
    # What is said for the whole pod counts instead of its containers'.
    for name, text in ((spec.get("resources") or {}).get(which) or {}).items():
        total[name] = parse_quantity(text)
    for name, text in (spec.get("overhead") or {}).items():
        if which == "requests" or name in total:
            total[name] = total.get(name, Decimal(0)) + parse_quantity(text)
    return total


def takes_whole_node(spec: Body) -> bool:
    """Whether no other pod of this kind may be on the node of one with this `spec`."""
    terms = ((spec.get("affinity") or {}).get("podAntiAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or ()
    return any(WHOLE_NODE in ((term.get("labelSelector") or {}).get("matchLabels") or {}) for term in terms)


def _add(total: dict[str, Decimal], more: Mapping[str, Decimal]) -> dict[str, Decimal]:
    for name, amount in more.items():
        total[name] = total.get(name, Decimal(0)) + amount
    return total


def _asked(container: Body, which: str) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    limits, asked = resources.get("limits") or {}, resources.get(which) or {}
    return {name: parse_quantity(text) for name, text in {**limits, **asked}.items()}


def quota_use(pod: Body, resource: str) -> Decimal:
    """How much of a quota's resource (`limits.cpu`, `requests.memory`, `cpu`, `pods`) a pod uses up."""
    if resource in {"pods", "count/pods"}:
        return Decimal(1)
    which, _, name = resource.partition(".")
    if which not in {"limits", "requests"}:
        which, name = "requests", resource
    return pod_resources(pod["spec"], which).get(name, Decimal(0))


def format_amount(resource: str, amount: Decimal) -> str:
    """An amount with its unit: `2 CPUs`, `48Gi of memory`, `1 GPU`; also of a quota's resources."""
    name = resource.removeprefix("limits.").removeprefix("requests.")
    if name in _BYTES:
        return f"{format_bytes(amount)} of {name.replace('-', ' ')}"
    if name == WHOLE_NODE and amount != 1:
        return f"{format_number(amount)} nodes of their own"
    word = _NAMES.get(name)
    if word is None:
        return f"{format_number(amount)} {name}"
    return f"{format_number(amount)} {word}{'' if amount == 1 else 's'}"
