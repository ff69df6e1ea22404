"""A cluster that was made for one job goes when that has ended, whoever has stopped following it."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sp_ray_ml.cluster._activity import Head, find_head
from sp_ray_ml.cluster._black_box import IN_CLUSTER, save_black_box
from sp_ray_ml.cluster._black_box_store import local_folder
from sp_ray_ml.cluster._head_http import in_cluster
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, POD, RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_rules import BLACK_BOX, FOR_JOB, JOB_ENDED_AT
from sp_ray_ml.cluster._lifetime_text import read_time, show_time, write_time
from sp_ray_ml.cluster._run_jobs import hand_on, records_of
from sp_ray_ml.errors import ClusterNotFoundError, SpRayError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["after_job", "box_place"]

Body = dict[str, Any]

_GRACE = datetime.timedelta(minutes=2)
"""Whoever follows the job reads its last words first, and removes the cluster himself."""
_GRACE_BEFORE = datetime.timedelta(hours=2)
"""The head may be there long before the job: whoever made the cluster waits for its workers first."""
_GRACE_LOST = datetime.timedelta(minutes=30)
"""A job whose head was lost may be started again by whoever follows it."""


def after_job(api: Api, cluster: Body, now: datetime.datetime, *, direct: bool | None = None) -> str | None:
    """Delete a cluster whose job has ended, its black box saved before.

    Args:
        api: The API server.
        cluster: The RayCluster.
        now: The time.
        direct: Ask pods at their addresses; as `in_cluster` without.

    Returns:
        What was done, in words; None for a cluster that goes with no job, or whose job goes on.

    Raises:
        SpRayError: It could not be done.
    """
    meta = cluster["metadata"]
    notes = meta.get("annotations") or {}
    if not (id := notes.get(FOR_JOB)) or meta.get("deletionTimestamp") or cluster["spec"].get("suspend"):
        return None
    state = _state(api, cluster, id, direct)
    if state not in ("succeeded", "failed", "stopped", "lost", "not begun"):
        if notes.get(JOB_ENDED_AT):
            _annotate(api, cluster, None)
        return None
    if not (since := notes.get(JOB_ENDED_AT)):
        _annotate(api, cluster, write_time(now))
        return f"job {id} works no more: {state}"
    due = read_time(since) + {"lost": _GRACE_LOST, "not begun": _GRACE_BEFORE}.get(state, _GRACE)
    if now < due:
        return f"job {id} works no more ({state}): deleted at {show_time(due)}"
    if heir := hand_on(api, cluster, id, lambda job: _state(api, cluster, job.id, direct)):
        return f"job {id} works no more ({state}): goes with job {heir.id}, which is on it, too"
    reason = f"its job {id} works no more: {state}"
    place = save_black_box(
        api, meta["namespace"], meta["name"], box_place(cluster), now=now, direct=direct,
        reason=f"deleted: {reason}",
    )  # fmt: skip
    try:
        fresh = api.get(RAY_CLUSTER, meta["namespace"], meta["name"])
    except ClusterNotFoundError:
        return f"gone already: {reason}"
    if fresh["metadata"]["uid"] != meta["uid"] or _state(api, fresh, id, direct) != state:
        return f"left alone after all; a black box lies at {place}"
    version = fresh["metadata"]["resourceVersion"]
    gone = api.delete(RAY_CLUSTER, meta["namespace"], meta["name"], uid=meta["uid"], version=version)
    return (
        f"deleted: {reason}; black box: {place}" if gone else f"it changes: left to the next pass ({reason})"
    )


def box_place(cluster: Body) -> str:
    """Where its black box goes; a folder would be one of this pod, which is gone in a moment."""
    place = (cluster["metadata"].get("annotations") or {}).get(BLACK_BOX)
    return IN_CLUSTER if not place or (in_cluster() and local_folder(place) is not None) else place


def _state(api: Api, cluster: Body, id: str, direct: bool | None) -> str:
    """What the job does: as Ray says, `lost` where Ray knows it no more, `not begun` where it never did, `unknown` where
    it cannot be asked."""
    meta = cluster["metadata"]
    job = next((each for each in records_of(cluster) if each.id == id), None)
    pod = find_head(api.list(POD, meta["namespace"], labels=f"{CLUSTER_LABEL}={meta['name']}")[0], cluster)
    if pod is None:
        return "unknown"
    try:
        with Head(api, cluster, pod, direct=direct) as head:
            path = f"/api/jobs/{quote(job.submission if job else id, safe='')}"
            return str(json.loads(head.ray.get(path))["status"]).lower()
    except ClusterNotFoundError:
        return "lost" if job else "not begun"
    except SpRayError:
        return "unknown"


def _annotate(api: Api, cluster: Body, value: str | None) -> None:
    meta = cluster["metadata"]
    body = {"metadata": {"annotations": {JOB_ENDED_AT: value}}}
    api.patch(RAY_CLUSTER, meta["namespace"], meta["name"], body)
