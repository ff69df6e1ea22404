"""Hours that clusters have taken: from pods and their life times to sums by cluster and day. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sp_ray_ml.cluster._gpu_types import gpu_type_of_pod
from sp_ray_ml.cluster._lifetime_text import read_time, write_time
from sp_ray_ml.cluster._pod_resources import pod_resources

__all__ = ["NO_TYPE", "Share", "add_days", "advance", "now_of", "total_of"]

Body = Mapping[str, Any]
Day = dict[str, Any]
Entry = dict[str, Any]
"""A cluster's hours: `name`, `uid`, `creator`, `until` (they are summed up to then) and `days`, by date in UTC: `cpu`,
`memory` (GiB) and `gpu` (by type), in hours that its pods asked for; `cpu_known` and `gpu_known`, the part of these
during which Ray was asked; `cpu_used` and `gpu_used`, the part of that which Ray had given to tasks and actors."""

NO_TYPE = "any"
"""A GPU of which a pod does not say the type."""
_SAMPLE = datetime.timedelta(minutes=15)
"""For how long before it an answer of Ray's is taken to hold, at most: the agent asks every five minutes."""


@dataclass(frozen=True)
class Share:
    """The part of a cluster's CPUs and GPUs that Ray has given to tasks and actors; None of what it has none of."""

    cpu: float | None = None
    gpu: float | None = None


@dataclass(frozen=True)
class _Use:
    cpu: float
    memory: float
    gpus: float
    gpu_type: str
    start: datetime.datetime
    end: datetime.datetime | None


def _use(pod: Body) -> _Use | None:
    """What a pod holds, from when a node has taken it; None for one that none has taken."""
    status = pod.get("status") or {}
    if not status.get("startTime"):
        return None
    asked = pod_resources(pod["spec"])
    end = None
    if status.get("phase") in {"Succeeded", "Failed"}:
        end = _end(status)
    return _Use(
        float(asked.get("cpu", 0)),
        float(asked.get("memory", 0)) / 2**30,
        float(sum(count for name, count in asked.items() if name.endswith("/gpu"))),
        gpu_type_of_pod(pod["spec"]) or NO_TYPE,
        read_time(status["startTime"]),
        end,
    )


def _end(status: Body) -> datetime.datetime:
    """When a pod ended that has: by its containers, or, where an eviction or a lost node left none, its conditions."""
    ended = [
        each["state"]["terminated"]["finishedAt"]
        for each in status.get("containerStatuses") or ()
        if (each.get("state") or {}).get("terminated", {}).get("finishedAt")
    ]
    lost = [
        each["lastTransitionTime"]
        for each in status.get("conditions") or ()
        if each["type"] in {"Ready", "DisruptionTarget"} and each.get("lastTransitionTime")
    ]
    return max(map(read_time, ended or lost), default=read_time(status["startTime"]))


def now_of(pods: Sequence[Body]) -> Day:
    """What pods hold at this moment: `cpu`, `memory` in GiB, `gpu` by type."""
    found: Day = {"cpu": 0.0, "memory": 0.0, "gpu": {}}
    for use in filter(None, map(_use, pods)):
        if use.end is None:
            _add(found, {"cpu": use.cpu, "memory": use.memory, "gpu": _typed(use, 1.0)})
    return found


def advance(entry: Entry, pods: Sequence[Body], now: datetime.datetime, share: Share | None = None) -> Entry:
    """A cluster's hours, summed on until now.

    Args:
        entry: Its hours until now; without `until` they are summed from when each pod started.
        pods: Its pods, those that have ended too.
        now: The time. Where another one has summed up to later already, that stays: two may look at once.
        share: What Ray answered now; None where it was not asked or did not answer.
    """
    since = read_time(entry["until"]) if entry.get("until") else None
    days: dict[str, Day] = {}
    add_days(days, entry.get("days") or {})
    for use in filter(None, map(_use, pods)):
        start = max(use.start, since) if since else use.start
        end = min(use.end, now) if use.end else now
        for day, begins, ends in _by_day(start, end):
            hours = (ends - begins).total_seconds() / 3600
            known = max(0.0, (ends - max(begins, now - _SAMPLE)).total_seconds() / 3600)
            more: Day = {"cpu": use.cpu * hours, "memory": use.memory * hours, "gpu": _typed(use, hours)}
            if share is not None and share.cpu is not None:
                more |= {"cpu_known": use.cpu * known, "cpu_used": use.cpu * known * share.cpu}
            if share is not None and share.gpu is not None:
                more |= {"gpu_known": use.gpus * known, "gpu_used": use.gpus * known * share.gpu}
            add_days(days, {day: more})
    return {**entry, "until": write_time(max(now, since) if since else now), "days": days}


def _typed(use: _Use, hours: float) -> dict[str, float]:
    return {use.gpu_type: use.gpus * hours} if use.gpus else {}


def _by_day(
    start: datetime.datetime, end: datetime.datetime
) -> Iterator[tuple[str, datetime.datetime, datetime.datetime]]:
    """A time in parts that lie in one day each, in UTC."""
    at = start.astimezone(datetime.UTC)
    end = end.astimezone(datetime.UTC)
    while at < end:
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0) + datetime.timedelta(days=1)
        yield at.date().isoformat(), at, min(midnight, end)
        at = midnight


def add_days(days: dict[str, Day], more: Mapping[str, Day]) -> None:
    """Add the hours of each day."""
    for day, sums in more.items():
        _add(days.setdefault(day, {}), sums)


def _add(total: Day, more: Day) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping):
            inner = total.setdefault(name, {})
            for kind, hours in value.items():
                inner[kind] = round(inner.get(kind, 0.0) + hours, 6)
        else:
            total[name] = round(total.get(name, 0.0) + value, 6)


def total_of(days: Iterable[Day]) -> Day:
    """The sum of days."""
    found: Day = {}
    for each in days:
        _add(found, each)
    return found
