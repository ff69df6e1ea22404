"""The agent that looks after the clusters of a namespace: asks, warns, suspends, deletes. One pass a run.

`python -m sp_ray_ml.cluster.agent` runs in the CronJob that `_agent_manifest` makes, or anywhere with a kubeconfig.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._activity import ask_activity
from sp_ray_ml.cluster._after_job import after_job, box_place
from sp_ray_ml.cluster._agent_manifest import NOT_FROM_A_QUEUE, retire_agent
from sp_ray_ml.cluster._black_box import HomeNotSavedError, save_black_box
from sp_ray_ml.cluster._kinds import EVENT, RAY_CLUSTER
from sp_ray_ml.cluster._kueue import may_set_active, set_active
from sp_ray_ml.cluster._lifetime import has_limits
from sp_ray_ml.cluster._lifetime_rules import (
    LAST_ACTIVITY,
    WARNING,
    Activity,
    Decision,
    Lifetime,
    decide,
    home_of,
    suspended_annotations,
)
from sp_ray_ml.cluster._lifetime_text import read_time, show_time, write_time
from sp_ray_ml.cluster._usage_store import record_usage
from sp_ray_ml.errors import ClusterError, KubernetesError, SpRayError
from sp_ray_ml.logger import LOGGER, logged_to_stdout

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["look_after", "main", "run_pass"]

Body = dict[str, Any]
Clock = Callable[[], datetime.datetime]

_AT_ONCE = 16
_TRIES = 3
_NEWS = datetime.timedelta(minutes=1)
"""A later last activity than this is written down: each write wakes the operator, too."""
_LONGEST_MESSAGE = 1_000


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def run_pass(
    api: Api, namespace: str, *, clock: Clock = _utc_now, direct: bool | None = None
) -> dict[str, str | BaseException]:
    """Look once after all clusters of a namespace that have a limit.

    Args:
        api: The API server.
        namespace: The namespace.
        clock: Gives the time.
        direct: Ask pods at their addresses; as `in_cluster` without.

    Returns:
        For each cluster's name what was done, or the error that came of it: one does not stop the others.
    """
    clusters = [cluster for cluster in api.list(RAY_CLUSTER, namespace)[0] if has_limits(cluster)]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sp-ray-agent") as pool:
        runs = {
            cluster["metadata"]["name"]: pool.submit(look_after, api, cluster, clock=clock, direct=direct)
            for cluster in clusters
        }
        return {name: run.exception() or run.result() for name, run in runs.items()}


def look_after(api: Api, cluster: Body, *, clock: Clock = _utc_now, direct: bool | None = None) -> str:
    """Look once after one cluster, and do what is due.

    Args:
        api: The API server.
        cluster: The RayCluster.
        clock: Gives the time.
        direct: Ask pods at their addresses; as `in_cluster` without.

    Returns:
        What was done, in words.

    Raises:
        SpRayError: It could not be done: a refusal of the API server, a black box that cannot be saved.
    """
    if (done := after_job(api, cluster, clock(), direct=direct)) is not None:
        return done
    for _ in range(_TRIES):
        decision, activity = _decide(api, cluster, clock(), direct)
        if decision.action == "nothing":
            _note(api, cluster, decision, clock())
            return _state(cluster, decision, activity)
        if decision.action == "warn":
            if not _patch(api, cluster, decision.changes):
                cluster = _again(api, cluster)
                continue
            _tell(api, cluster, "SpRayWarning", decision.message, clock())
            return f"warned: {decision.message}"
        done = _act(api, cluster, decision, clock, direct)
        if done is not None:
            return done
        cluster = _again(api, cluster)
    return "it changes all the time: left to the next pass"


def _decide(
    api: Api, cluster: Body, now: datetime.datetime, direct: bool | None
) -> tuple[Decision, Activity]:
    life = Lifetime.of(cluster)
    activity = Activity("absent", "it is suspended")
    if not life.suspended and not life.deleting:
        activity = ask_activity(api, cluster, direct=direct)
    return decide(life, activity, now), activity


def _act(api: Api, cluster: Body, decision: Decision, clock: Clock, direct: bool | None) -> str | None:
    """Save the black box, make sure that all is as it was, and suspend or delete; None where it is not."""
    meta = cluster["metadata"]
    suspend = decision.action == "suspend"
    doing = "suspended" if suspend else "deleted"
    if suspend and not may_set_active(api, cluster):  # Kueue would resume it, without what ran on it
        return _refrain(api, cluster, f"not {doing}: {NOT_FROM_A_QUEUE}", clock())
    try:
        place = save_black_box(
            api, meta["namespace"], meta["name"], box_place(cluster), now=clock(), direct=direct,
            reason=f"{doing}: {decision.message}", with_home=suspend and home_of(cluster) == "pod",
        )  # fmt: skip
    except SpRayError as error:
        said = _refrain(api, cluster, f"not {doing}: {error.message}", clock())
        if isinstance(error, HomeNotSavedError):  # that is how it is to be, and nothing of ours is broken
            return said
        raise
    # That took its time: meanwhile somebody may have begun to work, or extended it.
    cluster = _again(api, cluster)
    now = clock()
    again, _ = _decide(api, cluster, now, direct)
    if again.action != decision.action:
        _note(api, cluster, again, now)
        return f"left alone after all; a black box lies at {place}"
    meta = cluster["metadata"]
    if not suspend:
        _tell(api, cluster, "SpRayDeleted", f"deleted: {again.message}; black box: {place}", now)
        gone = api.delete(
            RAY_CLUSTER, meta["namespace"], meta["name"], uid=meta["uid"], version=meta["resourceVersion"]
        )
        return f"deleted: {again.message}; black box: {place}" if gone else None
    if not _patch(api, cluster, {**again.changes, **suspended_annotations(now)}, {"suspend": True}):
        return None
    set_active(api, cluster, False)  # Kueue would resume it at once
    said = f"suspended: {again.message}; black box: {place}"
    _tell(api, cluster, "SpRaySuspended", said, now)
    return said


def _refrain(api: Api, cluster: Body, said: str, now: datetime.datetime) -> str:
    """Say why nothing is done though it is due, once."""
    notes, warning = cluster["metadata"].get("annotations") or {}, said[:_LONGEST_MESSAGE]
    if notes.get(WARNING) != warning and _patch(api, cluster, {WARNING: warning}):
        _tell(api, cluster, "SpRayWarning", said, now)
    return said


def _state(cluster: Body, decision: Decision, activity: Activity) -> str:
    life = Lifetime.of(cluster)
    if life.deleting:
        return "is being deleted"
    if life.suspended:
        return "suspended" + (f", deleted not before {show_time(life.deletion)}" if life.deletion else "")
    since = decision.changes.get(LAST_ACTIVITY)
    idle = read_time(since) if since else life.idle_since
    words = f"{activity.state}{': ' + activity.why if activity.why else ''}"
    return f"idle since {show_time(idle)}" if activity.state == "idle" else words


def _note(api: Api, cluster: Body, decision: Decision, now: datetime.datetime) -> None:
    """Write down what has changed, where it is worth a write. One that does not get through is made in the next pass."""
    notes = cluster["metadata"].get("annotations") or {}
    changes = {key: value for key, value in decision.changes.items() if notes.get(key) != value}
    if set(changes) == {LAST_ACTIVITY} and notes.get(LAST_ACTIVITY):
        before, after = read_time(notes[LAST_ACTIVITY]), read_time(str(changes[LAST_ACTIVITY]))
        if after - before < _NEWS and now - after < _NEWS:
            return
    if changes:
        _patch(api, cluster, changes)


def _patch(api: Api, cluster: Body, changes: Any, spec: Body | None = None) -> bool:
    """Change annotations, and the spec, of just what was read; False where it has changed since."""
    meta = cluster["metadata"]
    body: Body = {"metadata": {"resourceVersion": meta["resourceVersion"], "annotations": dict(changes)}}
    if spec:
        body["spec"] = spec
    try:
        changed = api.patch(RAY_CLUSTER, meta["namespace"], meta["name"], body)
    except KubernetesError as error:
        if error.status == 409:
            return False
        raise
    meta["resourceVersion"] = changed["metadata"]["resourceVersion"]
    return True


def _again(api: Api, cluster: Body) -> Body:
    """The cluster as it is now.

    Raises:
        ClusterNotFoundError: It is gone, or another one has its name.
    """
    meta = cluster["metadata"]
    found = api.get(RAY_CLUSTER, meta["namespace"], meta["name"])
    if found["metadata"]["uid"] != meta["uid"]:
        raise ClusterError("another cluster has its name now", where=meta["name"])
    return found


def _tell(api: Api, cluster: Body, reason: str, message: str, now: datetime.datetime) -> None:
    """Make an Event, which `sp-ray describe` and `kubectl describe` show."""
    meta = cluster["metadata"]
    when = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": RAY_CLUSTER.api_version,
            "kind": RAY_CLUSTER.name,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "type": "Warning" if reason == "SpRayWarning" else "Normal",
        "reason": reason,
        "message": message[:_LONGEST_MESSAGE],
        "firstTimestamp": when,
        "lastTimestamp": when,
        "count": 1,
        "source": {"component": "sp-ray-agent"},
    }
    api.create(EVENT, meta["namespace"], body)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one pass; the exit status is 1 where it failed for a cluster."""
    from sp_ray_ml.cluster._api import Api

    parser = argparse.ArgumentParser(prog="python -m sp_ray_ml.cluster.agent", description=__doc__)
    parser.add_argument("--namespace", "-n", help="the namespace; the pod's or the context's own without")
    parser.add_argument("--kubeconfig", help="a kubeconfig; in a pod its own account without")
    options = parser.parse_args(arguments)
    with logged_to_stdout():
        try:
            with Api(options.kubeconfig) as api:
                return _main(api, options.namespace or api.namespace)
        except SpRayError as error:
            LOGGER.error("%s", error)
            return 1


def _main(api: Api, namespace: str) -> int:
    before = retire_agent(api, namespace)
    summed = _record_usage(api, namespace)
    outcomes = run_pass(api, namespace)
    failed = 0
    for name, outcome in sorted(outcomes.items()):
        if isinstance(outcome, SpRayError):
            failed += 1
            LOGGER.error("%s/%s: %s", namespace, name, outcome)
        elif isinstance(outcome, BaseException):
            failed += 1
            LOGGER.error("%s/%s: a fault of the agent's own", namespace, name, exc_info=outcome)
        else:
            LOGGER.info("%s/%s: %s", namespace, name, outcome)
    LOGGER.info("looked after %d clusters at %s, %d failed", len(outcomes), write_time(_utc_now()), failed)
    if not outcomes and not summed and before():
        LOGGER.info("no cluster here has a limit: the agent is removed until one has")
    return 1 if failed else 0


def _record_usage(api: Api, namespace: str) -> int:
    """Sum the hours of a team's clusters; what cannot be summed now is in the next pass. Limits are kept all the same."""
    try:
        return record_usage(api, namespace)
    except SpRayError as error:
        LOGGER.error("%s: the hours of its clusters are not summed: %s", namespace, error)
        return 0


if __name__ == "__main__":
    sys.exit(main())
