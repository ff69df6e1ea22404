"""What people see of a cluster's life time: its annotations at creation, notes and lines of text, and extending it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_rules import (
    ACTIVITY,
    BLACK_BOX,
    EXTENDED_UNTIL,
    FOR_JOB,
    IDLE_TIMEOUT,
    KEPT_UNTIL,
    LAST_ACTIVITY,
    SUSPENDED_AT,
    TTL,
    WARNING_KEYS,
    Activity,
    Decision,
    Lifetime,
    decide,
    grace,
    lead,
)
from sp_ray_ml.cluster._lifetime_text import read_duration, show_time, span, write_duration, write_time
from sp_ray_ml.errors import ClusterError, ConfigError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = [
    "Activity",
    "Decision",
    "Lifetime",
    "decide",
    "extend",
    "has_limits",
    "lifetime_annotations",
    "lifetime_lines",
    "lifetime_notes",
    "resumed_annotations",
]

_TRIES = 5


def lifetime_annotations(settings: ClusterSettings) -> dict[str, str]:
    """The annotations of a new cluster; empty where it has no limit."""
    found: dict[str, str] = {}
    if settings.idle_limit is not None or settings.life_limit is not None:
        found[IDLE_TIMEOUT] = "never" if settings.idle_limit is None else write_duration(settings.idle_limit)
        found[TTL] = "never" if settings.life_limit is None else write_duration(settings.life_limit)
    if settings.black_box:
        found[BLACK_BOX] = settings.black_box
    return found


def resumed_annotations(now: datetime.datetime | None = None) -> dict[str, str | None]:
    """The changes of a merge patch that resumes a cluster: its idle time begins anew; None removes an annotation."""
    when = now or datetime.datetime.now(datetime.UTC)
    return {
        SUSPENDED_AT: None,
        LAST_ACTIVITY: write_time(when),
        ACTIVITY: None,
        **dict.fromkeys(WARNING_KEYS),
    }


def extend(
    api: Api,
    namespace: str,
    name: str,
    by: datetime.timedelta | str,
    *,
    now: datetime.datetime | None = None,
) -> datetime.datetime:
    """Let a cluster live longer by `by`, and not be suspended as idle for so long from now. Warnings are withdrawn.

    A suspended cluster stays suspended, and is deleted later: `sp-ray resume` brings it back.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.
        by: A duration, `1d` say.
        now: The time.

    Returns:
        Until when it lives; for a cluster without a `ttl`, until when it may be idle.

    Raises:
        ConfigError: `by` is no duration.
        ClusterError: It has no limit that could be extended.
        ClusterNotFoundError: There is no such cluster.
    """
    more = _duration(by)
    for attempt in range(_TRIES):
        cluster = api.get(RAY_CLUSTER, namespace, name)
        life, when = Lifetime.of(cluster), now or datetime.datetime.now(datetime.UTC)
        if not life.limited:
            raise ClusterError(
                "it has no idle timeout and no ttl: it lives until it is deleted",
                where=f"{namespace}/{name}",
                hint=f"Give it limits: kubectl annotate raycluster {name} -n {namespace} {IDLE_TIMEOUT}=2h {TTL}=3d",
            )
        if life.deleting:
            raise ClusterError("it is being deleted", where=f"{namespace}/{name}")
        try:
            kept = max(when + more, life.kept_until or when)
            ends = None if life.ends is None else max(life.ends, when) + more
        except OverflowError:
            raise ConfigError(f"{span(more)} is too long", hint="Name a shorter one: --by 1d") from None
        changes: dict[str, str | None] = {KEPT_UNTIL: write_time(kept), **dict.fromkeys(WARNING_KEYS)}
        if not life.suspended:
            changes[LAST_ACTIVITY] = write_time(when)
        if ends is not None:
            changes[EXTENDED_UNTIL] = write_time(ends)
        # With the version that it was computed from: two people who extend at once both get theirs.
        meta = {"resourceVersion": cluster["metadata"]["resourceVersion"], "annotations": changes}
        try:
            api.patch(RAY_CLUSTER, namespace, name, {"metadata": meta})
        except KubernetesError as error:
            if error.status != 409 or attempt == _TRIES - 1:
                raise
            continue
        return kept if ends is None else ends
    raise AssertionError("unreachable")


def _duration(by: datetime.timedelta | str) -> datetime.timedelta:
    try:
        found = read_duration(by) if isinstance(by, str) else by
    except ValueError as error:
        raise ConfigError(str(error), where="by") from None
    if found <= datetime.timedelta(0):
        raise ConfigError(f"must be more than nothing, got {by}", where="by")
    return found


def has_limits(cluster: Mapping[str, Any]) -> bool:
    """Whether a cluster has a limit, one that cannot be read included, or goes with a job."""
    notes = cluster["metadata"].get("annotations") or {}
    return bool(notes.get(FOR_JOB)) or any(
        (notes.get(key) or "never") != "never" for key in (IDLE_TIMEOUT, TTL)
    )


def lifetime_lines(
    cluster: Mapping[str, Any], now: datetime.datetime | None = None, *, problem: str | None = None
) -> list[str]:
    """What `sp-ray describe` says of a cluster's life time; nothing for one without limits.

    Args:
        cluster: The RayCluster.
        now: The time.
        problem: Why nobody keeps its limits, where that is so.
    """
    try:
        life = Lifetime.of(cluster)
    except ClusterError as error:
        return [f"life time: {error}"]
    return list(_lines(cluster, life, now or datetime.datetime.now(datetime.UTC), problem))


def _lines(
    cluster: Mapping[str, Any], life: Lifetime, now: datetime.datetime, problem: str | None
) -> Iterator[str]:
    if life.deleting:
        return
    if job := (cluster["metadata"].get("annotations") or {}).get(FOR_JOB):
        yield f"removed when job {job} has ended{f': by you, as {problem}' if problem else ''}"
    if not life.limited:
        return
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    if life.warning and not problem:
        yield f"warning: {life.warning}"
    if life.suspended:
        since = f" since {show_time(life.suspended_at)}" if life.suspended_at else ""
        yield f"suspended{since}; bring it back: sp-ray resume cluster {name} -n {namespace}"
    idle = None if life.suspended else life.idle_limit
    if problem:
        if idle is not None or life.life_limit is not None:
            yield _unkept(name, namespace, idle, life.life_limit, problem)
        return
    if idle is not None and life.idle_ends is not None:
        yield _idle_line(cluster, life, now, idle, life.idle_ends)
    if life.ends is not None and life.life_limit is not None and life.deletion is not None:
        end = "" if life.suspended else f"suspended when its time is over, {show_time(life.ends)}; "
        yield (
            f"{end}deleted not before {show_time(life.deletion)}; "
            f"longer: sp-ray extend cluster {name} -n {namespace} --by 1d"
        )


def _idle_line(
    cluster: Mapping[str, Any],
    life: Lifetime,
    now: datetime.datetime,
    limit: datetime.timedelta,
    ends: datetime.datetime,
) -> str:
    state, _, why = ((cluster["metadata"].get("annotations") or {}).get(ACTIVITY) or "").partition(": ")
    if not state:
        return f"not yet asked for activity: suspended when it has been idle for {span(limit)}"
    if state == "active":
        return f"in use ({why}): suspended when it has been idle for {span(limit)}"
    if state == "absent":
        return f"no head runs ({why}): its idle time ({span(limit)}) begins when one does"
    if state == "unknown":
        return f"activity unknown ({why}): not taken for idle"
    return f"idle {span(now - life.idle_since)} of {span(limit)}: suspended at {show_time(max(ends, life.due_at or ends))}"


def lifetime_notes(
    settings: ClusterSettings, namespace: str, *, volumes: bool = True, problem: str | None = None
) -> list[str]:
    """What whoever creates a cluster should know: what is kept where, when it goes, and how it stays.

    Args:
        settings: The cluster's settings.
        namespace: Its namespace.
        volumes: Whether there is a storage class for the head's home.
        problem: Why nobody keeps its limits, where that is so.
    """
    idle, life = settings.idle_limit, settings.life_limit
    if idle is None and life is None:
        return []
    on_volume = bool(settings.lasting_home and volumes)
    home = f"the head's home is on the volume {settings.name}-home: it outlives a suspension, and goes with the cluster"
    if problem:
        lost = "what is written in its pods goes with them when it is suspended: it has no home that is kept"
        return [_unkept(settings.name, namespace, idle, life, problem), home if on_volume else lost]
    said = []
    if idle is not None:
        said.append(f"suspended when idle for {span(idle)} (warned {span(lead(idle))} before)")
    if life is not None:
        said.append(
            f"suspended when it is {span(life)} old (warned {span(lead(life))} before) and deleted {span(grace(life))} later"
        )
    notes = [f"{'; '.join(said)}; longer: sp-ray extend cluster {settings.name} -n {namespace} --by 1d"]
    place = (
        settings.black_box
        or f"ConfigMap {settings.name}-black-box (900 KiB at most; more by --black-box URL)"
    )
    if on_volume:
        notes.append(home)
    elif settings.lasting_home or settings.workbench:
        notes.append(
            f"no storage class for the head's home: before a suspension it is saved to {place}; "
            "where it does not fit there, the cluster is not suspended but warned about"
        )
    else:
        notes.append("what is written in its pods goes with them: it has no home that is kept (--home-size)")
    notes.append(f"before it is suspended or deleted its logs, Events and jobs are saved to {place}")
    return notes


def _unkept(
    name: str,
    namespace: str,
    idle: datetime.timedelta | None,
    life: datetime.timedelta | None,
    problem: str,
) -> str:
    """The one thing that is true of limits that nobody keeps."""
    limits = [f"idle for {span(idle)}"] if idle is not None else []
    limits += [f"{span(life)} old"] if life is not None else []
    return (
        f"nobody looks after this cluster, so that it goes on when it is {' or '.join(limits)}: {problem}; "
        f"end it yourself: sp-ray delete cluster {name} -n {namespace}"
    )
