"""Pods that no node takes: what is asked for, what there is, and whether a node is on its way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sp_ray_ml.cluster._causes_volumes import claim_cause
from sp_ray_ml.cluster._events import age_s, event_message, event_time, events_about
from sp_ray_ml.cluster._gpu_types import gpu_type_of_node, gpu_type_of_pod
from sp_ray_ml.cluster._kinds import NODE_TYPE_LABEL
from sp_ray_ml.cluster._node_match import allocatable, is_usable, too_small, unmet_requirement, untolerated
from sp_ray_ml.cluster._pod_resources import format_amount, pod_resources
from sp_ray_ml.cluster._snapshot import Cause, Snapshot, condition

__all__ = ["gpu_inventory", "scheduling_cause"]

Body = Mapping[str, Any]
_NEVER_S = 60.0
"""An autoscaler has said by then whether it adds a node."""
_SCALING_S = 600.0
_MOST_AWAY = 3
_SCALES = ("TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")
"""The cluster autoscaler's Events, and Karpenter's."""


def scheduling_cause(snapshot: Snapshot, component: str, pod: Body, others: int) -> Cause | None:
    """The cause why a pod has no node; None where the scheduler has not said that none will do.

    Args:
        snapshot: What Kubernetes shows.
        component: What the pod is of.
        pod: The pod.
        others: How many more pods of the component wait likewise.
    """
    scheduled = condition(pod, "PodScheduled")
    if (pod.get("spec") or {}).get("nodeName") or scheduled is None or scheduled["status"] == "True":
        return None
    message = str(scheduled.get("message") or "")
    if scheduled.get("reason") == "SchedulingGated" or (pod["spec"].get("schedulingGates") and not message):
        gates = ", ".join(each["name"] for each in pod["spec"].get("schedulingGates") or ())
        return Cause(
            "gated",
            component,
            f"its pod is held back until {gates or 'a scheduling gate'} lets it go",
            f"See who holds it: kubectl describe pod {pod['metadata']['name']} -n {pod['metadata']['namespace']}",
        )
    if scheduled.get("reason") != "Unschedulable":
        return None
    if cause := claim_cause(snapshot, component, pod, message):
        return cause
    said = events_about(snapshot, pod, *_SCALES)
    news = said[-1] if said and (snapshot.now - event_time(said[-1])).total_seconds() < _SCALING_S else None
    reason = str(news["reason"]) if news else ""
    why, remedy, can_ever, details = _why(snapshot, pod, message)
    pods = f"{others + 1} pods wait: " if others else ""
    if reason in {"TriggeredScaleUp", "Nominated"}:
        assert news is not None
        return Cause(
            "scaling_up",
            component,
            f"{pods}the autoscaler is adding a node: {_scaling(event_message(news))}",
            "Wait; new nodes take some minutes",
            details=(why,),
        )
    will_not = ""
    if news is not None:
        will_not = re.sub(r"^pod didn't trigger scale-up[^:]*: ?", "", event_message(news)).strip()
        details = (*details, f"the autoscaler adds no node: {will_not or 'none of its kinds would do'}")
    full = "max node group size reached" in will_not or "in backoff" in will_not
    permanent = not can_ever and not full and (bool(news) or age_s(pod, snapshot.now) >= _NEVER_S)
    return Cause(
        "unschedulable", component, f"{pods}{why}", remedy, permanent=permanent and snapshot.nodes is not None,
        details=details,
    )  # fmt: skip


def _scaling(message: str) -> str:
    match = re.search(r"\[\{(\S+) (\d+)->(\d+) \(max: (\d+)\)\}", message)
    if match:
        group = match[1].rpartition("/")[2]
        return f"{group} grows from {match[2]} to {match[3]}, {match[4]} at most"
    return re.sub(r"\s+", " ", message).strip().rstrip(".")


def _why(snapshot: Snapshot, pod: Body, message: str) -> tuple[str, str, bool, tuple[str, ...]]:
    """What is wrong, what to do, whether the nodes that there are could ever take the pod, and more lines."""
    describe = f"kubectl describe pod {pod['metadata']['name']} -n {pod['metadata']['namespace']}"
    if snapshot.nodes is None:
        return _from_scheduler(pod, message), f"See the scheduler's words: {describe}", True, ()
    spec, head = pod["spec"], pod["metadata"]["labels"].get(NODE_TYPE_LABEL) == "head"
    usable = [node for node in snapshot.nodes if is_usable(node)]
    if not usable:
        return "there is no node that is ready", "Have a look: kubectl get nodes", True, ()
    free = [node for node in usable if _takes(spec, node)]
    if not free:
        fitting = [node for node in usable if unmet_requirement(spec, node) is None]
        why, remedy, can_ever, details = (
            _labels(spec, usable)
            or _size(spec, fitting, "node" if len(fitting) == len(usable) else "node of that kind", head)
            or _tainted(spec, [node for node in fitting if not too_small(spec, node)])
        )
        away = [_away(node) for node in snapshot.nodes if not is_usable(node) and _takes(spec, node)]
        return why, remedy, can_ever or bool(away), (*details, *away[:_MOST_AWAY])
    short = re.findall(r"(\d+) Insufficient (\S+?)[,.]", message)
    lacking = ", ".join(dict.fromkeys(_word(name) for _, name in short)) or "room"
    nodes = (
        f"the {len(free)} nodes that could take it are"
        if len(free) > 1
        else "the one node that could take it is"
    )
    if "Too many pods" in message:
        lacking = "pods"
    if short or "Too many pods" in message:
        why = f"{nodes} full: too few {lacking} free for {_asks(spec)}"
        return why, "Wait until others end, or see who is there: kubectl get pods -A -o wide", True, ()
    return _from_scheduler(pod, message), f"See the scheduler's words: {describe}", True, ()


def _takes(spec: Body, node: Body) -> bool:
    """Whether a node would take a pod if it was ready and had room."""
    return not (unmet_requirement(spec, node) or too_small(spec, node) or untolerated(spec, node))


def _away(node: Body) -> str:
    cordoned = (node.get("spec") or {}).get("unschedulable")
    return f"node {node['metadata']['name']} would do, but is {'cordoned' if cordoned else 'not ready'}"


def _labels(spec: Body, nodes: Sequence[Body]) -> tuple[str, str, bool, tuple[str, ...]] | None:
    unmet = [unmet_requirement(spec, node) for node in nodes]
    if any(each is None for each in unmet):
        return None
    wanted = gpu_type_of_pod(spec)
    if wanted and not any(gpu_type_of_node(node) in wanted.split(", ") for node in nodes):
        there = gpu_inventory(nodes)
        have = (
            f"there {'is' if len(there) == 1 else 'are'} {', '.join(there)}" if there else "no node has a GPU"
        )
        return (
            f"no node has a GPU of type {wanted.replace(', ', ' or ')}: {have}",
            f"Choose one that there is: --worker-gpu-type {there[0].partition(' (')[0]}; or have nodes with it added"
            if there
            else "Have nodes with it added, or leave GPUs out",
            False,
            (),
        )
    first = next(each for each in unmet if each is not None)
    key, operator = first["key"], first["operator"]
    values = Counter(labels[key] for node in nodes if key in (labels := node["metadata"].get("labels") or {}))
    said = f"{key}={'|'.join(first.get('values') or ())}" if operator == "In" else f"{key} ({operator})"
    # Some node has it, but not together with the others that are asked for.
    if any(each is not None and each["key"] != key for each in unmet):
        have = "nodes have one or the other of the labels asked for, none has all"
    elif not values:
        have = "no node has this label at all"
    else:
        have = "its values are " + ", ".join(
            f"{value} ({count} node{'' if count == 1 else 's'})" for value, count in values.most_common(6)
        )
    return (
        f"no node has the label {said}: {have}",
        f"Correct node_selector, or label a node: kubectl get nodes -L {key}",
        False,
        (),
    )


def gpu_inventory(nodes: Sequence[Body]) -> list[str]:
    """Types of GPU that nodes have, with counts: `t4 (8 GPUs on 2 nodes)`."""
    amounts: dict[str, tuple[Decimal, int]] = {}
    for node in nodes:
        names = (node.get("status") or {}).get("allocatable") or {}
        count = sum((allocatable(node, name) for name in names if name.endswith("/gpu")), Decimal(0))
        if count:
            type = gpu_type_of_node(node) or "no named type"
            gpus, on = amounts.get(type, (Decimal(0), 0))
            amounts[type] = gpus + count, on + 1
    return [
        f"{type} ({format_amount('nvidia.com/gpu', gpus)} on {on} node{'' if on == 1 else 's'})"
        for type, (gpus, on) in sorted(amounts.items(), key=lambda row: (-row[1][0], row[0]))
    ]


def _size(
    spec: Body, nodes: Sequence[Body], kind: str, head: bool
) -> tuple[str, str, bool, tuple[str, ...]] | None:
    if any(not too_small(spec, node) for node in nodes):
        return None
    asked = pod_resources(spec)
    # What no node has enough of; where each has enough of something, what most lack.
    lacking = [name for name in asked if all(asked[name] > allocatable(node, name) for node in nodes)]
    if not lacking:
        counts = Counter(name for node in nodes for name in too_small(spec, node))
        names = " and ".join(_word(name) for name, _ in counts.most_common(2))
        return (
            f"no {kind} has enough {names} at once for {_asks(spec)}",
            f"Ask for less: {_option('cpus', head)}, {_option('memory', head)}; or have larger nodes added",
            False,
            (),
        )
    name = max(lacking, key=lambda each: (each.endswith("/gpu"), asked[each]))
    largest = max(allocatable(node, name) for node in nodes)
    if name.endswith("/gpu"):
        there = gpu_inventory(nodes)
        return (
            f"no {kind} has {format_amount(name, asked[name])}: the largest has {format_amount(name, largest)}"
            if largest
            else f"no {kind} has GPUs ({name})",
            f"Ask for fewer: {_option('gpus', head)}; or have nodes with them added",
            False,
            tuple(f"there is {each}" for each in there),
        )
    return (
        f"no {kind} is large enough for {format_amount(name, asked[name])}: the largest has "
        f"{format_amount(name, largest)} for pods",
        f"Ask for less{'' if head else ', more and smaller workers say'}: "
        f"{_option('memory' if name == 'memory' else 'cpus', head)}; or have larger nodes added",
        False,
        (),
    )


def _option(what: str, head: bool) -> str:
    if head and what == "gpus":  # which only a file gives a head
        return "head: {gpus: N}"
    return f"--{what}-in-head" if head else f"--{what}-per-worker"


def _tainted(spec: Body, nodes: Sequence[Body]) -> tuple[str, str, bool, tuple[str, ...]]:
    taints = Counter(_taint(taint) for node in nodes if (taint := untolerated(spec, node)))
    first, count = taints.most_common(1)[0]
    would = f"{len(nodes)} nodes would do, but keep" if len(nodes) > 1 else "1 node would do, but keeps"
    rest = "" if len(taints) == 1 else f" on {count} of them"
    return (
        f"{would} its pods off by the taint {first}{rest}",
        "If they are meant for it, add to tolerations of the group: {key: KEY, operator: Exists}",
        False,
        tuple(
            f"{taint} on {number} node{'' if number == 1 else 's'}"
            for taint, number in taints.most_common(5)
            if len(taints) > 1
        ),
    )


def _taint(taint: Body) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"


def _asks(spec: Body) -> str:
    asked = pod_resources(spec)
    order: Callable[[str], tuple[bool, str]] = lambda name: (name.endswith("/gpu"), name)  # noqa: E731
    return ", ".join(format_amount(name, asked[name]) for name in sorted(asked, key=order)) or "it"


def _word(resource: str) -> str:
    return {"cpu": "CPUs", "nvidia.com/gpu": "GPUs"}.get(resource, resource)


# --- without nodes ------------------------------------------------------------------------------------------------------


def _from_scheduler(pod: Body, message: str) -> str:
    """The scheduler's message in words: `0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't …`."""
    match = re.match(r"0/(\d+) nodes are available: (.*?)(?:\. |\.$|$)", message)
    if match is None:
        return f"no node takes its pod: {message.rstrip('.')}" if message else "no node takes its pod"
    asked = pod_resources(pod["spec"])
    selector = ", ".join(f"{key}={value}" for key, value in (pod["spec"].get("nodeSelector") or {}).items())
    reasons = []
    for count, reason in re.findall(r"(\d+) (.+?)(?=, \d+ |$)", match[2]):
        if lacks := re.fullmatch(r"Insufficient (\S+)", reason):
            name = lacks[1]
            need = f" (a pod needs {format_amount(name, asked[name])})" if name in asked else ""
            reasons.append(f"{count} {_has(count)} too few free {_word(name)}{need}")
        elif "affinity/selector" in reason:
            reasons.append(
                f"{count} {'lacks' if count == '1' else 'lack'} the labels asked for{f' ({selector})' if selector else ''}"
            )
        elif taint := re.search(r"untolerated taint\(?s?\)? ?\{([^:}]*): ?([^}]*)\}", reason):
            value = f"={taint[2]}" if taint[2].strip() else ""
            reasons.append(f"{count} {_has(count)} the taint {taint[1]}{value}")
        elif "untolerated taint" in reason:
            reasons.append(f"{count} {_has(count)} taints that keep it off")
        else:
            reasons.append(f"{count} {reason.removeprefix('node(s) ')}")
    nodes = f"none of the {match[1]} nodes takes" if match[1] != "1" else "the only node does not take"
    return f"{nodes} its pod: {'; '.join(reasons)}"


def _has(count: str) -> str:
    return "has" if count == "1" else "have"
