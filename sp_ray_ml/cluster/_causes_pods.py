"""Why pods of the head or of a worker group are not ready, or not there: one cause for all that wait for the same."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sp_ray_ml.cluster._causes_containers import container_cause
from sp_ray_ml.cluster._causes_nodes import scheduling_cause
from sp_ray_ml.cluster._causes_refused import group_of_pod
from sp_ray_ml.cluster._events import (
    age_s,
    event_message,
    event_subject,
    event_time,
    events_about,
    parse_time,
)
from sp_ray_ml.cluster._kinds import GROUP_LABEL, NODE_TYPE_LABEL
from sp_ray_ml.cluster._snapshot import Cause, GroupState, Snapshot, condition, is_ready

__all__ = ["pod_causes", "replacement_causes"]

Body = Mapping[str, Any]
_RECENT_S = 300.0
_SLOW_S = 5.0
"""How long a pod may take to end before it is worth saying."""
_FORMER_S = 1.0
_TAKEN = {
    "PreemptionByScheduler": "had to give way to a pod of higher priority",
    "DeletionByTaintManager": "lost its node: the node was cordoned, failed, or was taken away",
    "EvictionByEvictionAPI": "was evicted: somebody drains its node",
    "TerminationByKubelet": "was ended by its node",
}


def pod_causes(snapshot: Snapshot, states: Sequence[GroupState], state: GroupState) -> list[Cause]:
    """Causes in the pods that a component has, those that are permanent first, then those of most pods."""
    head_ready = bool(states[0].ready)
    waiting = sorted(
        (pod for pod in state.pods if not is_ready(pod)),
        key=lambda pod: str(pod["metadata"].get("creationTimestamp")),
    )
    # An autoscaler may have more pods than wanted for a moment; a full group is well.
    if state.ready >= state.wanted:
        return []
    unplaced = [pod for pod in waiting if not pod["spec"].get("nodeName")]
    found: dict[tuple[str, str], tuple[Cause, int]] = {}
    alike: dict[str, Cause | None] = {}
    for pod in waiting:
        if not pod["spec"].get("nodeName"):
            # Pods that ask for the same wait for the same: a thousand are held against the nodes once.
            asks = _asks(snapshot, pod)
            if asks not in alike:
                alike[asks] = scheduling_cause(snapshot, state.component, pod, len(unplaced) - 1)
            cause = _failed(state.component, pod) or alike[asks]
        else:
            cause = _failed(state.component, pod) or container_cause(
                snapshot, state.component, pod, head_ready
            )
        if cause is not None:
            key = cause.kind, _without_name(cause.message, pod)
            first, count = found.get(key, (cause, 0))
            # The pod that has tried longest knows best.
            found[key] = (cause if cause.permanent and not first.permanent else first, count + 1)
    ordered = sorted(found.values(), key=lambda pair: (not pair[0].permanent, -pair[1]))
    return [_of_many(cause, count) for cause, count in ordered]


def _asks(snapshot: Snapshot, pod: Body) -> str:
    """What decides where a pod may go, and what was said of it."""
    spec = pod["spec"]
    said = (condition(pod, "PodScheduled") or {}).get("message")
    told = [event.get("reason") for event in events_about(snapshot, pod)]
    containers = [each.get("resources") for each in spec["containers"]]
    return repr(
        (said, told, containers, *(spec.get(key) for key in ("nodeSelector", "affinity", "tolerations")))
    )


def _of_many(cause: Cause, count: int) -> Cause:
    if count == 1 or cause.kind in {"unschedulable", "scaling_up", "image"}:
        return cause
    return replace(cause, message=f"in {count} pods: {cause.message}")


def _without_name(message: str, pod: Body) -> str:
    text = message.replace(pod["metadata"]["name"], "")
    return re.sub(r"\d+ (?:s|times)\b", "", text)


def _failed(component: str, pod: Body) -> Cause | None:
    """A pod that was ended from outside, and is still there."""
    status = pod.get("status") or {}
    target = condition(pod, "DisruptionTarget")
    taken = target is not None and target["status"] == "True"
    if status.get("phase") != "Failed" and not taken:
        return None
    reason = str(status.get("reason") or "")
    if not taken and reason not in {
        "Evicted",
        "Preempting",
        "Preempted",
        "Shutdown",
        "NodeLost",
        "NodeShutdown",
        "Terminated",
    }:
        return None
    why = _TAKEN.get(str((target or {}).get("reason")), "was ended by its node")
    said = str(status.get("message") or (target or {}).get("message") or "").strip().rstrip(".")
    return Cause(
        "evicted",
        component,
        f"pod {pod['metadata']['name']} {'was evicted' if reason == 'Evicted' else why}{f': {said}' if said else ''}",
        _evicted_remedy(said),
    )


def _evicted_remedy(said: str) -> str:
    if "memory" in said:
        return "Wait for its successor; ask for as much memory as it uses, or leave memory_request out"
    if "ephemeral-storage" in said or "disk" in said.lower():
        return "Wait for its successor; write less to its disk, or have nodes with larger disks"
    return "Wait for its successor; on spot nodes that is normal, without --spot it is rarer"


def replacement_causes(snapshot: Snapshot, states: Sequence[GroupState]) -> list[Cause]:
    """Why pods that were there have gone: evicted, ended, upgraded, of a former cluster, or still ending."""
    cluster = snapshot.cluster
    assert cluster is not None
    found: list[Cause] = []
    short = [state for state in states if state.ready < state.wanted]
    if not short:
        return []
    if cause := _upgrade(snapshot, cluster, states):
        return [cause]
    if cause := _former(snapshot, cluster, short):
        return [cause]
    for state in short:
        if cause := _deleted(snapshot, cluster, states, state) or _ending(snapshot, cluster, state):
            found.append(cause)
    return found


def _upgrade(snapshot: Snapshot, cluster: Body, states: Sequence[GroupState]) -> Cause | None:
    told = [
        event
        for event in events_about(snapshot, cluster, "DeletedPod")
        if "spec change" in event_message(event) and _recent(event, snapshot)
    ]
    if not told or (cluster["spec"].get("upgradeStrategy") or {}).get("type") != "Recreate":
        return None
    since = event_time(told[-1])
    # A cluster that was complete again since then waits for something else.
    if (
        not any(_made(pod, since) or pod["metadata"].get("deletionTimestamp") for pod in snapshot.pods)
        and states[0].pods
    ):
        return None
    ending = sum(bool(pod["metadata"].get("deletionTimestamp")) for pod in snapshot.pods)
    how_far = f"{ending} old ones still end" if ending else "the new ones start"
    return Cause(
        "upgrade",
        "cluster",
        f"its spec was changed and its upgradeStrategy is Recreate, so all pods are made anew: {how_far}",
        "Wait; what ran on it is lost",
    )


def _made(pod: Body, since: datetime.datetime) -> bool:
    made = parse_time(pod["metadata"].get("creationTimestamp"))
    return made is not None and made >= since.replace(microsecond=0)


def _former(snapshot: Snapshot, cluster: Body, short: Sequence[GroupState]) -> Cause | None:
    """A new cluster gets no pods while those of a former one of its name still end: the operator counts them."""
    uid = cluster["metadata"]["uid"]
    former = [
        pod
        for pod in snapshot.pods
        if pod["metadata"].get("labels", {}).get(NODE_TYPE_LABEL) in {"head", "worker"}
        and not any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
    ]
    if not former or all(state.pods for state in short) or age_s(cluster, snapshot.now) < _FORMER_S:
        return None
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    count = f"{len(former)} pod{'' if len(former) == 1 else 's'}"
    return Cause(
        "former_pods",
        "cluster",
        f"{count} of a former cluster {name} still {'end' if len(former) > 1 else 'ends'}, and KubeRay takes them "
        "for this one's: it makes new ones when they are gone",
        f"Wait, or have a look: kubectl get pods -n {namespace} -l ray.io/cluster={name}",
    )


def _deleted(
    snapshot: Snapshot, cluster: Body, states: Sequence[GroupState], state: GroupState
) -> Cause | None:
    """Pods that the operator has replaced because they had ended: only its Event says why."""
    for event in reversed(events_about(snapshot, cluster, "DeletedWorkerPod", "DeletedHeadPod")):
        match = re.search(
            r"[Pp]od \S+?/(\S+?); Pod status: (\w+); Pod restart policy: (\w+)", event_message(event)
        )
        if match is None or not _recent(event, snapshot):
            continue
        pod, phase, policy = match.groups()
        of = group_of_pod(cluster, pod, states)
        if of is not None and of.name != state.name:
            continue
        code = re.search(r"ExitCode:(\d+)", event_message(event))
        if said := _kubelets_words(snapshot, pod):
            return Cause(
                "evicted",
                state.component,
                f"pod {pod} {said}; KubeRay has replaced it",
                _evicted_remedy(said),
            )
        if phase == "Failed" and policy != "Never":
            return Cause(
                "evicted",
                state.component,
                f"pod {pod} was ended by its node, as when memory or disk run short there; KubeRay has replaced it",
                _evicted_remedy(""),
            )
        return Cause(
            "exited",
            state.component,
            f"Ray in pod {pod} ended with exit code {code[1] if code else 'unknown'}; KubeRay has replaced it",
            "Wait for its successor; if that ends too, see its log: "
            f"sp-ray logs cluster {cluster['metadata']['name']} -n {cluster['metadata']['namespace']}",
        )
    return None


def _kubelets_words(snapshot: Snapshot, pod: str) -> str:
    """What became of a pod that is gone, from Events about it."""
    told = [
        event
        for event in snapshot.events
        if event_subject(event).get("kind") == "Pod"
        and event_subject(event).get("name") == pod
        and event.get("reason")
        in {"Evicted", "Preempted", "NodeShutdown", "TaintManagerEviction", "NodeNotReady"}
    ]
    if not told:
        return ""
    event = max(told, key=event_time)
    text = re.sub(r"\s+", " ", event_message(event)).strip().rstrip(".")
    lost = event["reason"] in {"TaintManagerEviction", "NodeNotReady"}
    return _TAKEN["DeletionByTaintManager"] if lost else f"was evicted: {text}"


def _ending(snapshot: Snapshot, cluster: Body, state: GroupState) -> Cause | None:
    """A pod that takes its time to end: the next one is made when it is gone."""
    if len(state.pods) >= state.wanted:
        return None
    uid = cluster["metadata"]["uid"]
    ending = []
    for pod in snapshot.pods:
        labels, gone = (
            pod["metadata"].get("labels") or {},
            parse_time(pod["metadata"].get("deletionTimestamp")),
        )
        mine = any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
        here = (
            labels.get(NODE_TYPE_LABEL) == "head" if not state.name else labels.get(GROUP_LABEL) == state.name
        )
        if gone and mine and here:
            grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            asked = gone - datetime.timedelta(seconds=grace)
            ending.append(((snapshot.now - asked).total_seconds(), grace, pod["metadata"]["name"]))
    if not ending or max(ending)[0] < _SLOW_S:
        return None
    since, grace, name = max(ending)
    over = since > grace + _SLOW_S
    namespace = cluster["metadata"]["namespace"]
    return Cause(
        "ending",
        state.component,
        f"pod {name} was told to end {since:.0f} s ago and may take {grace:.0f} s; its successor is made when it is gone",
        f"Its node does not answer; remove it: kubectl delete pod {name} -n {namespace} --force --grace-period=0"
        if over
        else "Wait",
    )


def _recent(event: Body, snapshot: Snapshot) -> bool:
    return (snapshot.now - event_time(event)).total_seconds() < _RECENT_S
