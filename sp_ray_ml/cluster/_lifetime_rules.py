"""How long a cluster may idle and live: from its annotations, Ray's activity and the time to what is to be done. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sp_ray_ml.cluster._kinds import ANNOTATION, queue_of
from sp_ray_ml.cluster._lifetime_text import read_duration, read_time, show_time, span, write_time
from sp_ray_ml.errors import ClusterError

__all__ = ["Activity", "Decision", "Lifetime", "decide", "waits_in_queue"]

Body = Mapping[str, Any]

IDLE_TIMEOUT = f"{ANNOTATION}idle-timeout"
"""How long it may be idle before it is suspended: a duration, or `never`."""
TTL = f"{ANNOTATION}ttl"
"""How long it may live: a duration, or `never`."""
BLACK_BOX = f"{ANNOTATION}black-box"
"""Where its black boxes go: an fsspec URL."""
EXTENDED_UNTIL = f"{ANNOTATION}extended-until"
"""It lives until then at least."""
KEPT_UNTIL = f"{ANNOTATION}kept-until"
"""It is not suspended for being idle before then."""
LAST_ACTIVITY = f"{ANNOTATION}last-activity"
"""When it was last seen in use: its idle time runs from there."""
ACTIVITY = f"{ANNOTATION}activity"
"""What Ray answered last, in words."""
WARNED_AT = f"{ANNOTATION}warned-at"
WARNED_OF = f"{ANNOTATION}warned-of"
"""What the warning is about: `idle`, `ttl` or `deletion`."""
DUE_AT = f"{ANNOTATION}due-at"
"""When what was warned of happens."""
WARNING = f"{ANNOTATION}warning"
"""The warning, in words."""
SUSPENDED_AT = f"{ANNOTATION}suspended-at"
FOR_JOB = f"{ANNOTATION}for-job"
"""Id of the job with whose end it is deleted."""
JOB_ENDED_AT = f"{ANNOTATION}job-ended-at"
"""When that job was first seen to work no more."""

HOME_VOLUME = "home"
"""Name of the volume in the head's pod."""
WARNING_KEYS = (WARNED_AT, WARNED_OF, DUE_AT, WARNING)
_LONGEST_LEAD = datetime.timedelta(hours=12)
_LONGEST_GRACE = datetime.timedelta(hours=24)
_EARLIEST = datetime.datetime.min.replace(tzinfo=datetime.UTC)
_LATEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Activity:
    """What Ray answers when it is asked whether it is in use.

    Attributes:
        state: `active`; `idle`; `absent` where no head runs that could be asked; `unknown` where one does not answer.
        why: In words: what runs, or why it is unknown.
        last: When it was last in use, as far as Ray knows.
    """

    state: Literal["active", "idle", "absent", "unknown"]
    why: str = ""
    last: datetime.datetime | None = None


@dataclass(frozen=True)
class Lifetime:
    """The limits of a cluster and how far it is; times are aware.

    Attributes:
        idle_limit: How long it may be idle; None for ever.
        life_limit: How long it may live; None for ever.
        created: When it was made.
        extended_until: It lives until then at least.
        kept_until: It is not suspended for being idle before then.
        last_activity: When it was last seen in use.
        warned_at: When the warning that stands was given.
        warned_of: What it is about: `idle`, `ttl` or `deletion`.
        due_at: When that happens.
        warning: Its words.
        suspended_at: When it was suspended.
        suspended: Whether it is to be suspended (`spec.suspend`).
        waits: Whether it is suspended because its turn in a queue has not come.
        deleting: Whether it is being deleted.
    """

    created: datetime.datetime
    idle_limit: datetime.timedelta | None = None
    life_limit: datetime.timedelta | None = None
    extended_until: datetime.datetime | None = None
    kept_until: datetime.datetime | None = None
    last_activity: datetime.datetime | None = None
    warned_at: datetime.datetime | None = None
    warned_of: str = ""
    due_at: datetime.datetime | None = None
    warning: str = ""
    suspended_at: datetime.datetime | None = None
    suspended: bool = False
    waits: bool = False
    deleting: bool = False

    @classmethod
    def of(cls, cluster: Body) -> Lifetime:
        """Read it from a RayCluster.

        Raises:
            ClusterError: An annotation is none that we write.
        """
        meta = cluster["metadata"]
        notes = meta.get("annotations") or {}

        def time(key: str) -> datetime.datetime | None:
            return _read(meta["name"], key, notes[key], read_time) if notes.get(key) else None

        def limit(key: str) -> datetime.timedelta | None:
            said = notes.get(key) or "never"
            return None if said == "never" else _read(meta["name"], key, said, read_duration)

        return cls(
            created=read_time(meta["creationTimestamp"]),
            idle_limit=limit(IDLE_TIMEOUT),
            life_limit=limit(TTL),
            extended_until=time(EXTENDED_UNTIL),
            kept_until=time(KEPT_UNTIL),
            last_activity=time(LAST_ACTIVITY),
            warned_at=time(WARNED_AT),
            warned_of=notes.get(WARNED_OF, ""),
            due_at=time(DUE_AT),
            warning=notes.get(WARNING, ""),
            suspended_at=time(SUSPENDED_AT),
            suspended=bool(cluster["spec"].get("suspend")),
            waits=waits_in_queue(cluster),
            deleting=bool(meta.get("deletionTimestamp")),
        )

    @property
    def limited(self) -> bool:
        """Whether it has a limit at all."""
        return self.idle_limit is not None or self.life_limit is not None

    @property
    def ends(self) -> datetime.datetime | None:
        """When its time is over; None for never."""
        if self.life_limit is None:
            return None
        return max(_add(self.created, self.life_limit), self.extended_until or _EARLIEST)

    @property
    def ends_at_last(self) -> datetime.datetime | None:
        """Until when a job that runs, or a Ray that does not answer, holds off the end: as long again."""
        return None if self.ends is None or self.life_limit is None else _add(self.ends, self.life_limit)

    @property
    def idle_since(self) -> datetime.datetime:
        """When it was last seen in use; when it was made, where it was not yet."""
        return self.last_activity or self.created

    @property
    def idle_ends(self) -> datetime.datetime | None:
        """When it is suspended if it stays idle; None for never."""
        if self.idle_limit is None:
            return None
        return max(_add(self.idle_since, self.idle_limit), self.kept_until or _EARLIEST)

    @property
    def deletion(self) -> datetime.datetime | None:
        """When it is deleted at the earliest: when its time is over and it was suspended for a while."""
        if self.ends is None or self.life_limit is None:
            return None
        suspended = self.suspended_at or max(self.ends, _EARLIEST)
        return max(self.ends, _add(suspended, grace(self.life_limit)))


@dataclass(frozen=True)
class Decision:
    """What is to be done with a cluster now.

    Attributes:
        action: `nothing` beyond the changes; `warn`; `suspend`; `delete`.
        changes: Annotations to set; None removes one.
        message: For people: why.
    """

    action: Literal["nothing", "warn", "suspend", "delete"]
    changes: Mapping[str, str | None]
    message: str = ""


@dataclass(frozen=True)
class _Plan:
    """Something that is to come: what, when at the earliest, and from when on there is a warning of it."""

    what: str
    act: datetime.datetime
    warn_from: datetime.datetime
    visible: datetime.timedelta
    text: str


def lead(limit: datetime.timedelta) -> datetime.timedelta:
    """How long before a limit there is a warning: a fifth of it, at most 12 hours."""
    return min(limit / 5, _LONGEST_LEAD)


def grace(limit: datetime.timedelta) -> datetime.timedelta:
    """How long a cluster whose time is over stays suspended before it is deleted: a third of it, at most a day."""
    return min(limit / 3, _LONGEST_GRACE)


def waits_in_queue(cluster: Body) -> bool:
    """Whether a RayCluster is suspended because its turn in a queue of Kueue's has not come: nobody of us suspended it."""
    return (
        bool(cluster["spec"].get("suspend"))
        and queue_of(cluster) is not None
        and not (cluster["metadata"].get("annotations") or {}).get(SUSPENDED_AT)
    )


def decide(life: Lifetime, activity: Activity, now: datetime.datetime) -> Decision:
    """What is to be done with a cluster.

    It is suspended when it has been idle for its limit, or when its time is over; deleted when its time is over and it
    has been suspended for a while. Nothing happens but what a warning told of, for half of the warning's time at
    least. A cluster in use or of unknown use is never idle; when its time is over it gets as much again, at most.

    Args:
        life: Its limits and how far it is.
        activity: What Ray answered; of no account while it is suspended.
        now: The time.
    """
    if life.deleting or not life.limited:
        return Decision("nothing", {})
    changes: dict[str, str | None] = {}
    if life.waits:  # which is no idling, also where it ran before and had to give way
        return Decision("nothing", {LAST_ACTIVITY: write_time(now)})
    if life.suspended:
        if life.suspended_at is None:  # by hand: the time until it is deleted begins now
            life = replace(life, suspended_at=now)
            changes = {SUSPENDED_AT: write_time(now), ACTIVITY: None}
        return _follow(life, _deletion_plans(life), now, changes)
    if life.suspended_at is not None:  # resumed, which is a use
        life = replace(life, suspended_at=None, last_activity=now, warned_at=None, warned_of="", due_at=None)
        changes = {SUSPENDED_AT: None, LAST_ACTIVITY: write_time(now), **dict.fromkeys(WARNING_KEYS)}
    last = life.idle_since
    if activity.state in {"active", "absent"}:  # while no head runs, it waits, and does not idle
        last = now
    elif activity.last:
        last = max(last, min(activity.last, now))
    if last != life.last_activity:
        life = replace(life, last_activity=last)
        changes[LAST_ACTIVITY] = write_time(last)
    changes[ACTIVITY] = f"{activity.state}: {activity.why}" if activity.why else activity.state
    return _follow(life, _suspension_plans(life, activity), now, changes)


def _suspension_plans(life: Lifetime, activity: Activity) -> list[_Plan]:
    plans = []
    ends, last = life.ends, life.ends_at_last
    if ends is not None and last is not None and life.life_limit is not None:
        busy = activity.state in {"active", "unknown"}
        text = f"its time ({span(life.life_limit)}) is over at {show_time(ends)}"
        if activity.state == "active":
            text += f"; it is in use ({activity.why}), and so it may end that"
        elif activity.state == "unknown":
            text += f"; whether it is in use cannot be told ({activity.why}), and so it is given more"
        ahead = lead(life.life_limit)
        plans.append(_Plan("ttl", last if busy else ends, ends - ahead, ahead / 2, text))
    if life.idle_ends is not None and life.idle_limit is not None and activity.state == "idle":
        ahead = lead(life.idle_limit)
        text = (
            f"nothing has run since {show_time(life.idle_since)}, of {span(life.idle_limit)} that it may idle"
        )
        plans.append(_Plan("idle", life.idle_ends, life.idle_ends - ahead, ahead / 2, text))
    return plans


def _deletion_plans(life: Lifetime) -> list[_Plan]:
    act = life.deletion
    if act is None or life.life_limit is None:
        return []
    ahead = lead(life.life_limit)
    text = f"its time ({span(life.life_limit)}) is over"
    return [_Plan("deletion", act, act - ahead, ahead / 2, text)]


def _follow(
    life: Lifetime, plans: list[_Plan], now: datetime.datetime, changes: dict[str, str | None]
) -> Decision:
    """Warn of what comes next, and do it when the warning has stood for long enough."""
    near = [plan for plan in plans if now >= plan.warn_from]
    if not near:
        if life.warned_at or life.warning:
            changes.update(dict.fromkeys(WARNING_KEYS))
        return Decision("nothing", changes)
    # Once the end has come it is the end, or an idle spell now and then would put it off for ever.
    plan = next((p for p in near if p.what == "ttl" and now >= p.act), None) or min(near, key=lambda p: p.act)
    action: Literal["suspend", "delete"] = "delete" if plan.what == "deletion" else "suspend"
    warned = life.warned_at if life.warned_of == plan.what else None
    due = max(plan.act, _add(warned or now, plan.visible))
    if warned is None or life.due_at is None or due < life.due_at:
        # What comes sooner than people were told is told anew.
        due = max(plan.act, _add(now, plan.visible))
        text = _warning(action, due, plan)
        changes |= _warned(plan.what, now, due, text)
        return Decision("warn", changes, text)
    if due > life.due_at:  # put off: there is more time than was said
        changes |= _warned(plan.what, warned, due, _warning(action, due, plan))
        return Decision("nothing", changes)
    if now < due:
        return Decision("nothing", changes)
    return Decision(action, changes, plan.text)


def _warning(action: str, due: datetime.datetime, plan: _Plan) -> str:
    done = {"suspend": "is suspended", "delete": "is deleted"}[action]
    return f"{done} at {show_time(due)}: {plan.text}"


def _warned(what: str, at: datetime.datetime, due: datetime.datetime, text: str) -> dict[str, str | None]:
    return {WARNED_AT: write_time(at), WARNED_OF: what, DUE_AT: write_time(due), WARNING: text}


def home_of(cluster: Body) -> Literal["none", "volume", "pod"]:
    """Where the head's home lies: on a volume that outlives the pod, in the pod, or there is none to keep."""
    pod = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    for volume in pod.get("volumes") or ():
        if volume.get("name") == HOME_VOLUME:
            return "volume" if volume.get("persistentVolumeClaim") else "pod"
    return "none"


def suspended_annotations(now: datetime.datetime) -> dict[str, str | None]:
    """What a suspension leaves in the annotations: the warning has come true."""
    return {SUSPENDED_AT: write_time(now), **dict.fromkeys(WARNING_KEYS), ACTIVITY: None}


def _read(name: str, key: str, text: str, reader: Any) -> Any:
    try:
        return reader(text)
    except ValueError as error:
        raise ClusterError(
            f"the annotation {key} cannot be read: {error}",
            where=name,
            hint=f"Set it anew: kubectl annotate raycluster {name} {key}=… --overwrite",
        ) from None


def _add(when: datetime.datetime, more: datetime.timedelta) -> datetime.datetime:
    """The sum, or the last moment that there is."""
    try:
        return when + more
    except OverflowError:
        return _LATEST
