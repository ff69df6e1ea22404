"""Why a cluster as a whole gets nowhere: deleted, suspended, queued, refused by the operator, or not looked at by it."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sp_ray_ml.cluster._causes_queue import queue_cause
from sp_ray_ml.cluster._causes_refused import missing_account, nudge_command
from sp_ray_ml.cluster._events import (
    age_s,
    event_message,
    event_subject,
    event_time,
    events_about,
    parse_time,
)
from sp_ray_ml.cluster._kinds import queue_of
from sp_ray_ml.cluster._snapshot import Cause, GroupState, Snapshot, condition

__all__ = ["cluster_causes", "standing_causes"]

Body = Mapping[str, Any]
_OPERATOR = "ray.io/kuberay-operator"
_SILENT_S = 5.0
"""The operator writes the first status within 0.2 s; a busy one within seconds."""
_DEAD_S = 60.0
"""An operator that is being replaced is back by then."""
_EVENTS_LAST_S = 3600.0
_QUIET_S = 20.0


def standing_causes(snapshot: Snapshot) -> list[Cause]:
    """Why there are to be no pods at all: the cluster is being deleted, suspended, or waits in a queue."""
    cluster = snapshot.cluster
    assert cluster is not None
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    if cluster["metadata"].get("deletionTimestamp"):
        return [_deleting(snapshot, cluster)]
    queue = queue_of(cluster)
    suspended = condition(cluster, "RayClusterSuspended")
    suspending = condition(cluster, "RayClusterSuspending")
    asked = bool(cluster["spec"].get("suspend"))
    if queue and (cause := queue_cause(snapshot, cluster, queue, asked)):
        return [cause]
    resume = f"Resume it: sp-ray resume cluster {name} -n {namespace}"
    if asked:
        going = bool(snapshot.pods)
        message = "it is being suspended: its pods are ending" if going else "it is suspended and has no pods"
        return [Cause("suspended", "cluster", message, resume, permanent=True)]
    # Taking the field away resumes nothing: the operator waits for `false`.
    if "suspend" not in cluster["spec"] and any(
        found is not None and found["status"] == "True" for found in (suspended, suspending)
    ):
        message = (
            "it is suspended still: KubeRay resumes it when spec.suspend is false, not when the field is gone"
        )
        return [Cause("suspended", "cluster", message, resume, permanent=True)]
    return []


def cluster_causes(snapshot: Snapshot, groups: Sequence[GroupState]) -> list[Cause]:
    """Why the operator does nothing, or nothing of use, for a cluster."""
    cluster = snapshot.cluster
    assert cluster is not None
    other = cluster["spec"].get("managedBy")
    if other not in {None, "", _OPERATOR}:
        if any(group.wanted > group.ready for group in groups):
            return [_managed(snapshot, other)]
        return []
    found = [*_refused_by_operator(snapshot, cluster), *_duplicates(cluster)]
    return found or _silent(snapshot, cluster, groups)


def _deleting(snapshot: Snapshot, cluster: Body) -> Cause:
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    held = [each for each in cluster["metadata"].get("finalizers") or () if each != "foregroundDeletion"]
    waits = f"{len(snapshot.pods)} of its pods still end" if snapshot.pods else "its last objects go"
    if held:
        waits += f", and it waits for the finalizer {', '.join(held)}"
    return Cause(
        "deleting",
        "cluster",
        f"it is being deleted: {waits}",
        f"Wait until it is gone, then create it again: kubectl wait --for=delete raycluster/{name} -n {namespace}",
        permanent=True,
    )


# --- the operator -----------------------------------------------------------------------------------------------------


def _managed(snapshot: Snapshot, other: str) -> Cause:
    # MultiKueue runs it in another cluster, and copies its status to here.
    return Cause(
        "managed_by_other",
        "cluster",
        f"its spec.managedBy is {other}: KubeRay here leaves it to that controller"
        + ("" if snapshot.workloads is not None else ", and there is no Kueue in this cluster"),
        "Leave spec.managedBy out, or ask whoever runs Kueue: kubectl get workloads -A",
        permanent=snapshot.workloads is None,
    )


def _refused_by_operator(snapshot: Snapshot, cluster: Body) -> list[Cause]:
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    reasons = ("InvalidRayClusterSpec", "InvalidRayClusterMetadata", "AutoscalerServiceAccountNotFound")
    events = [
        event for event in events_about(snapshot, cluster, *reasons) if _of_this_version(event, cluster)
    ]
    if not events:
        return []
    event = events[-1]
    message = event_message(event)
    if event["reason"] == "AutoscalerServiceAccountNotFound":
        match = re.search(r"ServiceAccount (\S+) is not found", message)
        account = match[1] if match else "of the head"
        return [missing_account(snapshot, "head", account, ": with autoscaling the head needs it")]
    why = message.partition(f"{namespace}/{name}: ")[2] or message
    why = re.sub(r" \(e\.g\. .*?regex used for validation is '.*?'\)", "", why)
    why = why.replace("[a DNS-1035 label must", "it must").rstrip("].")
    if event["reason"] == "InvalidRayClusterMetadata":
        near = _near_name(name)
        return [
            Cause(
                "invalid_name",
                "cluster",
                f"KubeRay refuses the name {name}: {_about_name(why, name)}",
                f"Remove it: sp-ray delete cluster {name} -n {namespace}; and create it under another name, {near} say",
                permanent=True,
            )
        ]
    running = bool(cluster.get("status"))
    stays = "; what runs goes on, but nothing is changed or replaced" if running else ""
    return [
        Cause(
            "invalid_spec",
            "cluster",
            f"KubeRay refuses its spec: {why}{stays}",
            f"Correct it: kubectl edit raycluster {name} -n {namespace}",
            permanent=True,
        )
    ]


def _about_name(why: str, name: str) -> str:
    if match := re.search(r"no more than (\d+) characters", why):
        return f"it has {len(name)} characters, and {match[1]} are the most"
    return why.partition("label: ")[2] or why


def _of_this_version(event: Body, cluster: Body) -> bool:
    """Whether a refusal is about the cluster as it is now: every change is looked at anew, and told of anew."""
    status = cluster.get("status") or {}
    if event_subject(event).get("resourceVersion") == cluster["metadata"].get("resourceVersion"):
        return True
    # Old operators' Events keep the version that was refused first, and count on.
    old = bool(event.get("lastTimestamp") or event.get("deprecatedLastTimestamp"))
    behind = int(status.get("observedGeneration") or 0) < int(cluster["metadata"].get("generation") or 1)
    return old and behind


def _near_name(name: str) -> str:
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (near if near[:1].isalpha() else f"ray-{near}")[:53].strip("-")


def _duplicates(cluster: Body) -> list[Cause]:
    names = Counter(group["groupName"] for group in cluster["spec"].get("workerGroupSpecs") or ())
    metadata = cluster["metadata"]
    return [
        Cause(
            "duplicate_groups",
            f"worker group {name}",
            f"{count} worker groups are called {name}: KubeRay makes and deletes their pods for ever",
            f"Give each a name of its own: kubectl edit raycluster {metadata['name']} -n {metadata['namespace']}",
            permanent=True,
        )
        for name, count in names.items()
        if count > 1
    ]


def _silent(snapshot: Snapshot, cluster: Body, groups: Sequence[GroupState]) -> list[Cause]:
    """The operator that does not run, or not for this namespace, is told by what does not happen."""
    age = age_s(cluster, snapshot.now)
    look = "Check the operator: kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator"
    namespace = cluster["metadata"]["namespace"]
    if not cluster.get("status"):
        if age < _SILENT_S or events_about(snapshot, cluster):
            return []
        message = (
            f"KubeRay has done nothing for {_seconds(age)}: the operator does not run, "
            f"or does not watch namespace {namespace}"
        )
        if age > _EVENTS_LAST_S:
            message += "; or it has refused the cluster, in an Event that is forgotten by now"
            look += f"; or have it look again: {nudge_command(cluster)}"
        return [Cause("operator_silent", "cluster", message, look, permanent=age >= _DEAD_S)]
    missing = [group for group in groups if len(group.pods) < group.wanted]
    quiet = (snapshot.now - _last_sign(snapshot, cluster)).total_seconds()
    if not missing or quiet < _QUIET_S or condition(cluster, "ReplicaFailure") or _going(snapshot):
        return []
    pods = sum(group.wanted - len(group.pods) for group in missing)
    return [
        Cause(
            "operator_silent",
            "cluster",
            f"{pods} pod{' is' if pods == 1 else 's are'} missing and KubeRay has done nothing for "
            f"{_seconds(quiet)}: the operator does not run, or no longer watches namespace {namespace}",
            look,
        )
    ]


def _last_sign(snapshot: Snapshot, cluster: Body) -> datetime.datetime:
    """When anything happened to a cluster last, a change of its spec included."""
    written = [parse_time(each.get("time")) for each in cluster["metadata"].get("managedFields") or ()]
    made = [parse_time(item["metadata"].get("creationTimestamp")) for item in (cluster, *snapshot.pods)]
    changed = [
        parse_time(each.get("lastTransitionTime"))
        for item in (cluster, *snapshot.pods)
        for each in (item.get("status") or {}).get("conditions") or ()
    ]
    name = cluster["metadata"]["name"]
    told = [
        event_time(event)
        for event in snapshot.events
        if str(event_subject(event).get("name") or "").startswith(name)
    ]
    # Without its field managers nobody can say when the spec of a changed cluster was changed.
    if not written and int(cluster["metadata"].get("generation") or 1) > 1:
        return snapshot.now
    return max(found for found in (*written, *made, *changed, *told) if found is not None)


def _going(snapshot: Snapshot) -> bool:
    return any(pod["metadata"].get("deletionTimestamp") for pod in snapshot.pods)


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.0f} h"
