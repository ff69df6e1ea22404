"""Kueue: whether a cluster waits in a queue, at which place, and what it waits for."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from sp_ray_ml.cluster._events import age_s, parse_time
from sp_ray_ml.cluster._lifetime_rules import SUSPENDED_AT
from sp_ray_ml.cluster._snapshot import Cause, Snapshot, condition

__all__ = ["owned_by", "queue_cause"]

Body = Mapping[str, Any]
_UNNOTICED_S = 5.0
_CLOSED = ("Inadmissible", "Misconfigured", "Suspended")
"""Reasons by which a queue takes nothing as things are: the latter two from Kueue 0.19 on, where they are turned on."""
_TOO_MUCH = ("ExceedsMaxQuota", "NoMatchingFlavor")
_GAVE_WAY = {
    "InClusterQueue": "it gave way to one of higher priority",
    "InCohortReclamation": "another team has taken back what was its own",
    "InCohortFairSharing": "it gave way to another team's share",
}
"""By the reason for which Kueue has put out what ran."""
_NEVER = (
    "> maximum capacity",
    "unavailable in ClusterQueue",
    "doesn't match node affinity",
    "untolerated taint",
)


def queue_cause(snapshot: Snapshot, cluster: Body, queue: str, suspended: bool) -> Cause | None:
    uid = cluster["metadata"]["uid"]
    namespace = cluster["metadata"]["namespace"]
    look = f"See the queue: kubectl get workloads -n {namespace}"
    workloads = snapshot.workloads or ()
    mine = next((each for each in workloads if owned_by(each, uid)), None)
    if mine is None:
        if not suspended:
            return None
        if place := _place_in(snapshot, uid):
            return Cause("queue", "cluster", f"it waits in queue {queue}, {place}", look)
        late = age_s(cluster, snapshot.now) >= _UNNOTICED_S
        why = f"Kueue has not taken it up: it does not run, or does not care for {cluster.get('kind') or 'RayCluster'}s"
        message = (
            f"it waits for queue {queue}, but {why}" if late else f"it waits for queue {queue} to take it up"
        )
        return Cause("queue", "cluster", message, "Check Kueue: kubectl get pods -n kueue-system")
    if mine["spec"].get("active") is False:
        if SUSPENDED_AT in (cluster["metadata"].get("annotations") or {}):
            return None  # that is how it is suspended
        evicted = condition(mine, "Evicted") or condition(mine, "DeactivationTarget") or {}
        return Cause(
            "queue",
            "cluster",
            f"its place in queue {queue} was deactivated{_because(evicted.get('message'))}",
            f"Put it back: kubectl patch workload {mine['metadata']['name']} -n {namespace} "
            '--type merge -p \'{"spec":{"active":true}}\'',
            permanent=True,
        )
    if _true(mine, "Evicted") and _true(mine, "QuotaReserved"):  # it has its quota until its pods are gone
        said = _because((condition(mine, "Evicted") or {}).get("message"))
        return Cause("queue", "cluster", f"queue {queue} takes its place away from it{said}", look)
    if _true(mine, "Admitted"):
        message = f"queue {queue} has admitted it, and Kueue is about to resume it"
        return Cause("queue", "cluster", message, look) if suspended else None
    if _true(mine, "QuotaReserved"):
        checks = [
            f"{each['name']}: {each.get('message') or each.get('state')}"
            for each in (mine.get("status") or {}).get("admissionChecks") or ()
            if each.get("state") != "Ready"
        ]
        details = tuple(checks)
        message = f"queue {queue} has reserved its quota; {len(checks)} admission checks are still to pass"
        return Cause("queue", "cluster", message, look, details=details)
    reserved = condition(mine, "QuotaReserved") or {}
    because = _because(reserved.get("message"))
    queues = f"See which queues there are: kubectl get localqueues -n {namespace}"
    if reserved.get("reason") in _CLOSED or "doesn't exist" in because:
        return Cause("queue", "cluster", f"queue {queue} cannot take it{because}", queues)
    if _never(reserved):
        message = f"queue {queue} can never take it, however long it waits{because}"
        remedy = f"Ask for less, or for another queue. {queues}"
        return Cause("queue", "cluster", message, remedy, permanent=True)
    line = sorted(
        (each for each in workloads if each["spec"].get("queueName") == queue and _waits(each)), key=_place
    )
    index = next((index for index, each in enumerate(line) if owned_by(each, uid)), len(line))
    place = _place_in(snapshot, uid) or f"number {index + 1} of {len(line)}"
    return Cause(
        "queue",
        "cluster",
        f"it waits in queue {queue}, {place}{_gave_way(mine)}{because}",
        look,
        details=tuple(
            f"before it: {_owner(each)}{_priority(each)}, since {each['metadata']['creationTimestamp']}"
            for each in line[:index][:5]
        ),
    )


def _gave_way(mine: Body) -> str:
    """Why it runs no more, where it did."""
    preempted = condition(mine, "Preempted")
    if preempted is None or preempted["status"] != "True":
        return ""
    return f" ({_GAVE_WAY.get(preempted['reason'], 'it gave way to another one')})"


def _place_in(snapshot: Snapshot, uid: str) -> str | None:
    """Its place by Kueue's own view, which sees other namespaces' queues too; None where that has it not."""
    waiting = snapshot.pending or ()
    for each in waiting:
        if owned_by(each, uid):
            own, whole = (int(each.get(f"positionIn{kind}Queue") or 0) + 1 for kind in ("Local", "Cluster"))
            shared = f" (number {whole} of all queues that share its quota)" if whole > own else ""
            return f"number {own} of {len(waiting)}{shared}"
    return None


def _never(reserved: Body) -> bool:
    """Whether no flavor of the queue has, or may borrow, as much as is asked for. Kueue calls that pending, too, unless
    its finer reasons are turned on: it tries again when the queue is changed."""
    said = str(reserved.get("message") or "")
    if "insufficient unused quota" in said or said.endswith(
        "..."
    ):  # of one flavor at least, or not all is said
        return False
    return reserved.get("reason") in _TOO_MUCH or any(each in said for each in _NEVER)


def owned_by(item: Body, uid: str) -> bool:
    """Whether a Workload is that of the object with this uid."""
    return any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences") or ())


def _owner(item: Body) -> str:
    owners = item["metadata"].get("ownerReferences") or ()
    return f"{owners[0]['kind']} {owners[0]['name']}" if owners else f"workload {item['metadata']['name']}"


def _true(item: Body, type: str) -> bool:
    found = condition(item, type)
    return found is not None and found["status"] == "True"


def _waits(item: Body) -> bool:
    return (
        item["spec"].get("active") is not False
        and not _true(item, "QuotaReserved")
        and not _true(item, "Finished")
    )


def _place(item: Body) -> tuple[int, datetime.datetime, str]:
    """Kueue's order: by priority, then by when it came, or was put back."""
    evicted = condition(item, "Evicted")
    back = (
        evicted.get("lastTransitionTime") if evicted and evicted.get("reason") == "PodsReadyTimeout" else None
    )
    since = parse_time(back or item["metadata"]["creationTimestamp"])
    assert since is not None
    return -int(item["spec"].get("priority") or 0), since, str(item["metadata"].get("uid"))


def _priority(item: Body) -> str:
    priority = int(item["spec"].get("priority") or 0)
    return f" (priority {priority})" if priority else ""


def _because(message: Any) -> str:
    return f": {str(message).strip().rstrip('.')}" if message else ""
