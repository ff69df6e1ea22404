"""Kueue, as it is read: its Workloads, what waits in a queue by its own view, and where a suspended RayJob stands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._causes_queue import owned_by, queue_cause
from sp_ray_ml.cluster._kinds import WORKLOAD, Kind, queue_of
from sp_ray_ml.cluster._snapshot import Snapshot
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesAccessError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["may_set_active", "pending", "queue_position", "set_active", "workloads"]

Body = Mapping[str, Any]

_VERSIONS = ("v1beta2", "v1beta1")
"""Of both its APIs. Kueue 0.19 serves both and calls the old one deprecated; before 0.15 there is the old one only."""
_ANSWER_S = 10.0


def workloads(api: Api, namespace: str) -> Sequence[Body] | None:
    """Kueue's Workloads in whichever version is served; None where there is no Kueue, or they may not be read."""
    try:
        return _workloads(api, namespace)[1]
    except KubernetesAccessError as error:
        if error.status != 403:
            raise
        return None


def _workloads(api: Api, namespace: str) -> tuple[Kind, Sequence[Body] | None]:
    for version in _VERSIONS:
        kind = replace(WORKLOAD, base=f"/apis/kueue.x-k8s.io/{version}")
        try:
            return kind, api.list(kind, namespace)[0]
        except ClusterNotFoundError:
            continue
    return kind, None


def set_active(api: Api, item: Body, active: bool) -> bool:
    """Take a RayCluster or RayJob out of its queue, or put it back; whether Kueue has a Workload of it.

    Kueue alone decides when what is in a queue runs: it resumes at once what somebody else suspends and it has
    admitted, and suspends at once what somebody else resumes. Of what is taken out it suspends all, and gives its
    quota to others; what is put back waits its turn.

    Raises:
        KubernetesAccessError: Workloads may not be read, or this one not be changed.
    """
    meta = item["metadata"]
    if queue_of(item) is None:
        return False
    kind, found = _workloads(api, meta["namespace"])
    mine = next((each for each in found or () if owned_by(each, meta["uid"])), None)
    if mine is None:
        return False
    api.patch(kind, meta["namespace"], mine["metadata"]["name"], {"spec": {"active": active}})
    return True


def may_set_active(api: Api, item: Body) -> bool:
    """Whether `set_active` is not refused for want of rights: of what is in no queue it asks for none."""
    return queue_of(item) is None or all(
        api.allowed(verb, WORKLOAD, item["metadata"]["namespace"]) for verb in ("list", "patch")
    )


def pending(api: Api, namespace: str, queue: str) -> Sequence[Body] | None:
    """What waits in a LocalQueue by Kueue's visibility API, in its order; None where that does not answer us.

    It is Kueue itself that answers, and while it is away the API server says 503: that is not waited for.
    """
    for version in _VERSIONS:
        base = f"/apis/visibility.kueue.x-k8s.io/{version}/namespaces/{namespace}"
        try:
            path = f"{base}/localqueues/{queue}/pendingworkloads"
            found = json.loads(api.request("GET", path, repeat=False, timeout_s=_ANSWER_S))
            return found.get("items") or ()
        except ClusterNotFoundError:
            continue
        except KubernetesError:
            return None
    return None


def queue_position(api: Api, item: Body) -> str:
    """Where a suspended RayJob or RayCluster stands in its queue, and what it waits for, in words.

    Args:
        api: The API server.
        item: The object, with the queue's label.
    """
    meta = item["metadata"]
    queue = queue_of(item)
    if queue is None:
        return "it is suspended"
    snapshot = Snapshot(
        cluster=item,
        workloads=workloads(api, meta["namespace"]),
        pending=pending(api, meta["namespace"], queue),
    )
    cause = queue_cause(snapshot, item, queue, suspended=True)
    return cause.message if cause else f"queue {queue} has admitted it"
