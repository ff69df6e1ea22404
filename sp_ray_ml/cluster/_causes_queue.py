"""Kueue: whether a cluster waits in a queue, at which place, and what it waits for."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from sp_ray_ml.cluster._events import age_s, parse_time
from sp_ray_ml.cluster._snapshot import Cause, Snapshot, condition

__all__ = ["QUEUE_LABEL", "queue_cause"]

Body = Mapping[str, Any]
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_UNNOTICED_S = 5.0


def queue_cause(snapshot: Snapshot, cluster: Body, queue: str, suspended: bool) -> Cause | None:
    uid = cluster["metadata"]["uid"]
    namespace = cluster["metadata"]["namespace"]
    look = f"See the queue: kubectl get workloads -n {namespace}"
    workloads = snapshot.workloads or ()
    mine = next((each for each in workloads if _owned_by(each, uid)), None)
    if mine is None:
        if not suspended:
            return None
        late = age_s(cluster, snapshot.now) >= _UNNOTICED_S
        why = "Kueue has not taken it up: it does not run, or does not care for RayClusters"
        message = (
            f"it waits for queue {queue}, but {why}" if late else f"it waits for queue {queue} to take it up"
        )
        return Cause("queue", "cluster", message, "Check Kueue: kubectl get pods -n kueue-system")
    if mine["spec"].get("active") is False:
        evicted = condition(mine, "Evicted") or condition(mine, "DeactivationTarget") or {}
        return Cause(
            "queue",
            "cluster",
            f"its place in queue {queue} was deactivated{_because(evicted.get('message'))}",
            f"Put it back: kubectl patch workload {mine['metadata']['name']} -n {namespace} "
            '--type merge -p \'{"spec":{"active":true}}\'',
            permanent=True,
        )
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
    if reserved.get("reason") == "Inadmissible" or "doesn't exist" in str(reserved.get("message")):
        return Cause(
            "queue",
            "cluster",
            f"queue {queue} cannot take it{_because(reserved.get('message'))}",
            f"See which queues there are: kubectl get localqueues -n {namespace}",
        )
    line = sorted(
        (each for each in workloads if each["spec"].get("queueName") == queue and _waits(each)), key=_place
    )
    place = next(index for index, each in enumerate(line, start=1) if _owned_by(each, uid))
    return Cause(
        "queue",
        "cluster",
        f"it waits in queue {queue}, number {place} of {len(line)}{_because(reserved.get('message'))}",
        look,
        details=tuple(
            f"before it: {_owner(each)}{_priority(each)}, since {each['metadata']['creationTimestamp']}"
            for each in line[: place - 1][:5]
        ),
    )


def _owned_by(item: Body, uid: str) -> bool:
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
