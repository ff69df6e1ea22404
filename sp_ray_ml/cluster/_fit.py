"""Pods onto nodes: what is free on each, and how many pods find room together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._gpu_types import gpu_type_of_node
from sp_ray_ml.cluster._pod_resources import WHOLE_NODE, pod_resources, takes_whole_node
from sp_ray_ml.cluster._quantity import parse_quantity

__all__ = ["Demand", "Room", "place", "rooms", "scaler_of"]

Body = Mapping[str, Any]
Amounts = dict[str, Decimal]

_SCALERS = (
    ("karpenter.sh/nodepool", "Karpenter"),
    ("eks.amazonaws.com/compute-type", "EKS"),
    ("cloud.google.com/gke-nodepool", "GKE"),
    ("eks.amazonaws.com/nodegroup", "EKS"),
    ("kubernetes.azure.com/agentpool", "AKS"),
)
"""Labels of nodes in groups that a cloud can make larger."""


@dataclass(frozen=True)
class Demand:
    """Pods that are alike, to be placed.

    Attributes:
        name: What they are called.
        requests: What each asks for.
        count: How many.
    """

    name: str
    requests: Amounts
    count: int


@dataclass
class Room:
    """A node and what is free on it.

    Attributes:
        node: The node.
        total: What it has for pods.
        free: What of it is free.
        own: What its DaemonSets use, which is used on an empty node, too.
        gpu_type: Type of its GPUs, by its labels.
    """

    node: Body
    total: Amounts
    free: Amounts
    own: Amounts = field(default_factory=dict)
    gpu_type: str | None = None

    def emptied(self) -> Room:
        """The same node if only its DaemonSets ran."""
        left = {name: amount - self.own.get(name, Decimal(0)) for name, amount in self.total.items()}
        return Room(self.node, self.total, left, self.own, self.gpu_type)

    def count(self, requests: Amounts) -> int:
        """How many pods there is room for."""
        counts = [
            int(self.free.get(name, Decimal(0)) // amount) for name, amount in requests.items() if amount > 0
        ]
        return max(0, min(counts, default=0))

    def take(self, requests: Amounts, count: int) -> None:
        """Use up the room of so many pods."""
        for name, amount in requests.items():
            self.free[name] = self.free.get(name, Decimal(0)) - amount * count


def rooms(nodes: Sequence[Body], pods: Iterable[Body]) -> list[Room]:
    """Nodes, and what the pods on them leave free.

    Args:
        nodes: The nodes.
        pods: Pods of all namespaces.
    """
    found: dict[str, Room] = {}
    for node in nodes:
        given = node.get("status", {}).get("allocatable") or {}
        total = {name: parse_quantity(text) for name, text in given.items()} | {WHOLE_NODE: Decimal(1)}
        found[node["metadata"]["name"]] = Room(node, total, dict(total), {}, gpu_type_of_node(node))
    for pod in pods:
        room = found.get(pod["spec"].get("nodeName") or "")
        if room is None or pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            continue
        used = {**pod_resources(pod["spec"]), "pods": Decimal(1)}
        if takes_whole_node(pod["spec"]):
            used[WHOLE_NODE] = Decimal(1)
        room.take(used, 1)
        if any(owner["kind"] == "DaemonSet" for owner in pod["metadata"].get("ownerReferences") or ()):
            for name, amount in used.items():
                room.own[name] = room.own.get(name, Decimal(0)) + amount
    return list(found.values())


def place(demands: Sequence[Demand], nodes: Mapping[str, Sequence[Room]]) -> dict[str, int]:
    """How many pods of each demand find room together.

    Those go first that fewest nodes may take, then the largest. Where some find no room that way, they go in the order
    that the operator makes them in. The scheduler spreads pods, and may miss a packing that this finds.

    Args:
        demands: The pods, in the order in which they are made.
        nodes: By demand the nodes that may take it; their `free` stays as it is.
    """
    hardest = sorted(demands, key=lambda d: (len(nodes[d.name]), -d.requests.get("cpu", Decimal(0))))
    placed = _pack(hardest, nodes)
    if all(placed[demand.name] == demand.count for demand in demands):
        return placed
    return _pack(demands, nodes)


def _pack(demands: Sequence[Demand], nodes: Mapping[str, Sequence[Room]]) -> dict[str, int]:
    """Place each demand in turn on the fullest nodes that take it."""
    copies = {id(room): replace(room, free=dict(room.free)) for found in nodes.values() for room in found}
    placed: dict[str, int] = {}
    for demand in demands:
        left = demand.count
        able = [copies[id(room)] for room in nodes[demand.name]]
        # GPUs are left for those who ask for them, and large nodes for large pods.
        for room in sorted(able, key=lambda room: (_gpus(room.free), room.free.get("cpu", Decimal(0)))):
            if not left:
                break
            if count := min(left, room.count(demand.requests)):
                room.take(demand.requests, count)
                left -= count
        placed[demand.name] = demand.count - left
    return placed


def _gpus(amounts: Amounts) -> Decimal:
    return sum((amount for name, amount in amounts.items() if name.endswith("/gpu")), Decimal(0))


def scaler_of(nodes: Sequence[Body]) -> str | None:
    """Who can make more nodes, by the labels of those there are; None where nobody shows."""
    for label, name in _SCALERS:
        if any(label in (node["metadata"].get("labels") or {}) for node in nodes):
            return name
    return None
