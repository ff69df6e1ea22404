"""A request against the nodes: which may take each pod, which are large enough, where there is room, who can make more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._fit import Demand, Room, place, rooms
from sp_ray_ml.cluster._gpu_types import (
    canonical_gpu_type,
    gpu_type_of_node,
    gpu_type_of_pod,
    near_gpu_type,
)
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL
from sp_ray_ml.cluster._node_match import is_usable, unmet_requirement, untolerated
from sp_ray_ml.cluster._plan_findings import Finding
from sp_ray_ml.cluster._pod_resources import format_amount
from sp_ray_ml.cluster._requests import ClusterRequest, GroupRequest

__all__ = ["gpu_types_present", "node_findings"]

Body = Mapping[str, Any]
_ZERO = Decimal(0)
_MOST_NAMED = 6


@dataclass(frozen=True)
class _Nodes:
    """The nodes as they concern one request."""

    rooms: Sequence[Room]
    scaler: str | None
    seen_pods: bool


def node_findings(
    request: ClusterRequest, nodes: Sequence[Body], pods: Sequence[Body] | None, scaler: str | None
) -> Iterator[Finding]:
    """What the nodes say of a request.

    Args:
        request: The request.
        nodes: All nodes.
        pods: Pods of all namespaces; None where they may not be read.
        scaler: Who can make more nodes; None where nobody shows.
    """
    others = [pod for pod in pods or () if not _own(pod, request)]
    known = _Nodes(rooms(nodes, others), scaler, pods is not None)
    able: dict[str, list[Room]] = {}
    failed = False
    for group in request.groups:
        found = _able(group, known)
        if isinstance(found, Finding) and not group.replicas:
            # The cluster comes up all the same; what the group may be scaled to does not.
            if group.most != 0:
                yield replace(found, state="short", sentence=f"{found.sentence}; it begins without workers")
        elif isinstance(found, Finding):
            failed = True
            yield found
        else:
            able[group.name] = found
    wanted = [group for group in request.groups if group.name in able and group.replicas]
    demands = [Demand(group.name, group.requests, group.replicas) for group in wanted]
    now = place(demands, able)
    # The groups share their nodes, empty ones too.
    empty = {id(room): room.emptied() for room in known.rooms}
    later = place(demands, {name: [empty[id(room)] for room in found] for name, found in able.items()})
    short = [group for group in wanted if now[group.name] < group.replicas]
    for group in short:
        yield _short(group, now[group.name], later[group.name], able[group.name], known)
    if not short and not failed:
        count = sum(group.replicas for group in wanted)
        taking = len({id(room) for group in wanted for room in able[group.name]})
        if known.seen_pods:
            yield Finding(
                "nodes", "ok", f"there is room for {_pods(count)} on the {_nodes(taking)} that may take them"
            )
        else:
            yield Finding(
                "nodes", "unknown", f"empty, the nodes take {_pods(count)}; what runs on them may not be read",
                "Ask for the right to list pods, or create it and see",
            )  # fmt: skip


def _own(pod: Body, request: ClusterRequest) -> bool:
    meta = pod["metadata"]
    return (
        meta.get("namespace") == request.namespace
        and (meta.get("labels") or {}).get(CLUSTER_LABEL) == request.name
    )


def gpu_types_present(nodes: Sequence[Body]) -> dict[str, int]:
    """Types of GPU that nodes have, and on how many nodes."""
    return dict(Counter(kind for node in nodes if (kind := gpu_type_of_node(node))))


def _able(group: GroupRequest, known: _Nodes) -> list[Room] | Finding:
    """The nodes that may take a group's pods and, empty, are large enough; where there are none, why."""
    matching = [room for room in known.rooms if unmet_requirement(group.spec, room.node) is None]
    if not matching:
        return _no_match(group, known)
    usable = [room for room in matching if is_usable(room.node)]
    open_ = [room for room in usable if untolerated(group.spec, room.node) is None]
    if not open_:
        return _closed(group, matching, usable, known)
    large = [room for room in open_ if room.emptied().count(group.requests)]
    return large or _too_large(group, open_, known)


def _no_match(group: GroupRequest, known: _Nodes) -> Finding:
    wanted = gpu_type_of_pod(group.spec)
    present = gpu_types_present([room.node for room in known.rooms])
    if wanted and wanted not in present:
        there = ", ".join(f"{kind} ({_nodes(n)})" for kind, n in list(present.items())[:_MOST_NAMED])
        near = "" if canonical_gpu_type(wanted) else near_gpu_type(wanted, tuple(present))
        return _absent(
            f"{group.component}: no node has a GPU of type {wanted}"
            f"{f'; there are {there}' if there else '; no node names the type of its GPUs'}{near}",
            f"Ask for {'another type: --worker-gpu-type ' + next(iter(present)) if present else 'none'}, or add nodes",
            known,
        )  # fmt: skip
    unmet = Counter(
        _requirement(found) for room in known.rooms if (found := unmet_requirement(group.spec, room.node))
    )
    what = unmet.most_common(1)[0][0] if unmet else "what it asks for"
    return _absent(
        f"{group.component}: none of {_nodes(len(known.rooms))} has {what}",
        "Change its node selector or affinity: kubectl get nodes --show-labels", known,
    )  # fmt: skip


def _requirement(found: Body) -> str:
    """A requirement on labels in words."""
    values = [str(value) for value in found.get("values") or ()]
    shown = " or ".join(values[:3]) + (" or …" if len(values) > 3 else "")
    words = {"In": f"={shown}", "NotIn": f" other than {shown}", "DoesNotExist": " absent", "Gt": f" > {shown}",
             "Lt": f" < {shown}"}  # fmt: skip
    return f"the label {found['key']}{words.get(found['operator'], '')}"


def _closed(group: GroupRequest, matching: Sequence[Room], usable: Sequence[Room], known: _Nodes) -> Finding:
    if not usable:
        return Finding(
            "nodes", "short",
            f"{group.component}: the {_nodes(len(matching))} that would take it are not ready or cordoned",
            "Wait for them: kubectl get nodes",
        )  # fmt: skip
    taints = Counter(
        f"{taint['key']}{'=' + taint['value'] if taint.get('value') else ''}:{taint['effect']}"
        for room in usable
        if (taint := untolerated(group.spec, room.node))
    )
    said = ", ".join(f"{taint} ({_nodes(n)})" for taint, n in taints.most_common(3))
    return _absent(
        f"{group.component}: {_nodes(len(usable))} would take it but for taints that it does not tolerate: {said}",
        "Add a toleration, where you may use these nodes, or have others added", known,
    )  # fmt: skip


def _too_large(group: GroupRequest, open_: Sequence[Room], known: _Nodes) -> Finding:
    for name, amount in group.requests.items():
        most = max(room.emptied().free.get(name, _ZERO) for room in open_)
        if most < amount:
            gpus = f"are at most {format_amount(name, most)}" if most else f"is no {name}"
            return _absent(
                f"{group.component}: each pod asks for {format_amount(name, amount)}, "
                f"on the {_nodes(len(open_))} that may take it there {gpus}",
                "Ask for less a pod, or have larger nodes added", known,
            )  # fmt: skip
    return _absent(
        f"{group.component}: none of the {_nodes(len(open_))} that may take it has all of {_said(group)} for one pod",
        "Ask for less a pod, or have larger nodes added", known,
    )  # fmt: skip


def _absent(sentence: str, remedy: str, known: _Nodes) -> Finding:
    """No node there is will do. Whether one could be made is not seen from here: node groups may be at zero."""
    if known.scaler is None:
        return Finding("nodes", "never", sentence, remedy)
    return Finding(
        "nodes", "short", f"{sentence}; whether {known.scaler} has a node group at zero that would do is not seen here",
        f"{remedy}; or see {known.scaler}'s node groups",
    )  # fmt: skip


def _short(group: GroupRequest, now: int, later: int, able: Sequence[Room], known: _Nodes) -> Finding:
    what = f"{group.component}: room for {now} of {_pods(group.replicas)} of {_said(group)}"
    where = f"on the {_nodes(len(able))} that may take them"
    if known.scaler is not None:
        return Finding(
            "nodes", "short", f"{what} {where} now; {known.scaler} may add nodes of their kind",
            "Nothing need be done: they wait for the new nodes",
        )  # fmt: skip
    if later < group.replicas:
        if not group.name or not later:
            remedy = "Ask for less, or have nodes added"
        else:
            remedy = f"Ask for {_pods(later)}, or less a pod, or have nodes added"
        return Finding("nodes", "never", f"{what} {where}, and for {later} if nothing else ran there", remedy)
    return Finding(
        "nodes", "short", f"{what} {where} now; all would fit when others leave",
        "Ask for less, or wait until others leave: kubectl get pods -A --field-selector spec.nodeName=NODE",
    )  # fmt: skip


def _said(group: GroupRequest) -> str:
    shown = [format_amount(n, amount) for n, amount in group.requests.items() if amount and n != "pods"]
    return ", ".join(shown) or "nothing"


def _pods(count: int) -> str:
    return f"{count} pod{'' if count == 1 else 's'}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
