"""Volumes that a pod waits for before it gets a node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sp_ray_ml.cluster._events import age_s, event_message, event_subject, event_time
from sp_ray_ml.cluster._snapshot import Cause, Snapshot

__all__ = ["claim_cause"]

Body = Mapping[str, Any]
_LATE_S = 60.0
"""Somebody else may make a claim just after the cluster."""


def claim_cause(snapshot: Snapshot, component: str, pod: Body, message: str) -> Cause | None:
    """A pod waits for its volumes before it gets a node."""
    namespace = pod["metadata"]["namespace"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or ()
        if volume.get("persistentVolumeClaim")
    ]
    late = age_s(pod, snapshot.now) >= _LATE_S
    if match := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        return Cause(
            "volume",
            component,
            f"there is no volume claim {match[1]} in namespace {namespace}",
            f"See which there are: kubectl get pvc -n {namespace}",
            permanent=late,
        )
    if (
        "unbound immediate PersistentVolumeClaims" not in message
        and "volume node affinity conflict" not in message
    ):
        return None
    told = [
        event
        for event in snapshot.events
        if event_subject(event).get("kind") == "PersistentVolumeClaim"
        and event_subject(event).get("name") in claims
        and event.get("reason") in {"ProvisioningFailed", "FailedBinding"}
    ]
    event = max(told, key=event_time, default=None)
    claim = str(event_subject(event)["name"]) if event else ", ".join(claims) or "of its own"
    said = event_message(event).strip().rstrip(".") if event else ""
    look = f"See why: kubectl describe pvc {claim if claims else ''} -n {namespace}"
    if "volume node affinity conflict" in message:
        return Cause(
            "volume", component, f"volume {claim} lies in a zone where no node has room for the pod", look
        )
    if match := re.search(r'storageclass\.storage\.k8s\.io "([^"]+)" not found', said):
        return Cause(
            "volume",
            component,
            f"volume {claim} cannot be made: there is no storage class {match[1]}",
            "See which there are: kubectl get storageclass; and name one: storage_class",
            permanent=True,
        )
    if "no storage class is set" in said:
        return Cause(
            "volume",
            component,
            f"volume {claim} cannot be made: this cluster has no default storage class, and none is named",
            "See which there are: kubectl get storageclass; and name one: storage_class",
            permanent=True,
        )
    return Cause("volume", component, f"volume {claim} is not there yet{f': {said}' if said else ''}", look)
