"""Kubernetes Events and times, in their old shape (core/v1) and their new one (events.k8s.io)."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_ray_ml.cluster._snapshot import Snapshot

__all__ = [
    "age_s",
    "event_count",
    "event_message",
    "event_subject",
    "event_time",
    "events_about",
    "parse_time",
]

Body = Mapping[str, Any]
_LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)


def parse_time(text: str | None) -> datetime.datetime | None:
    """A moment as Kubernetes writes it; None for none."""
    if not text:
        return None
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def age_s(item: Body, now: datetime.datetime) -> float:
    """Seconds since an object was made; times have whole seconds, so up to one too many."""
    made = parse_time(item["metadata"].get("creationTimestamp"))
    return max((now - made).total_seconds(), 0.0) if made else 0.0


def event_subject(event: Body) -> Body:
    """The object that an Event is about: its kind, name, uid and resourceVersion."""
    found: Body = event.get("involvedObject") or event.get("regarding") or {}
    return found


def event_message(event: Body) -> str:
    """What an Event says."""
    return str(event.get("message") or event.get("note") or "")


def event_time(event: Body) -> datetime.datetime:
    """When it was seen last; new Events leave the old fields empty, and the other way round."""
    series = event.get("series") or {}
    candidates = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp") or event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp") or event.get("deprecatedFirstTimestamp"),
        event["metadata"].get("creationTimestamp"),
    )
    return max((found for text in candidates if (found := parse_time(text))), default=_LONG_AGO)


def event_count(event: Body) -> int:
    """How often it was seen."""
    series = event.get("series") or {}
    return int(series.get("count") or event.get("count") or event.get("deprecatedCount") or 1)


def events_about(snapshot: Snapshot, item: Body, *reasons: str) -> list[Body]:
    """The Events about this very object, of some reasons only where such are named, the newest last."""
    found = [
        event
        for event in snapshot.events_by_uid.get(str(item["metadata"].get("uid")), ())
        if not reasons or event.get("reason") in reasons
    ]
    return sorted(found, key=event_time)
