"""Schedules as `cron` writes them: checked with an example of what is meant, and their next times."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from collections.abc import Iterator, Sequence

from sp_ray_ml._names import near_match
from sp_ray_ml.errors import ConfigError

__all__ = ["check_cron", "next_times"]

_EXAMPLE = (
    'Five fields, minute hour day month weekday: "0 3 * * *" is every night at three, "30 6 * * mon-fri" on working '
    'days at half past six, "0 */4 * * *" every four hours'
)
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day of the month": "1 to 31",
    "month": "1 to 12, or jan to dec",
    "weekday": "0 (Sunday) to 6, or sun to sat",
}
_LAST_DAY, _LAST_WEEKDAY = 31, 6
_NOT_NAMES = re.compile(r"(posix|right)/|localtime|posixrules|Factory")
"""Files beside the time zones, which are other ones on other machines."""
_SOME_DAY = datetime.datetime(2000, 1, 1)
_HOUR = datetime.timedelta(hours=1)


def check_cron(expression: str, timezone: str = "UTC", *, where: str = "cron") -> None:
    """Find a schedule that Kubernetes or Flyte would refuse, or that never comes.

    Args:
        expression: Five fields, or a nickname such as `@daily`.
        timezone: Name of a time zone, `Europe/Berlin`.
        where: The setting, for the message.

    Raises:
        ConfigError: It is wrong; the message has what is right.
    """
    next_times(expression, timezone, count=1, where=where)


def next_times(
    expression: str,
    timezone: str = "UTC",
    *,
    count: int = 3,
    after: datetime.datetime | None = None,
    where: str = "cron",
) -> list[datetime.datetime]:
    """When it comes next, in its time zone.

    Args:
        expression: As for `check_cron`.
        timezone: As for `check_cron`.
        count: How many times.
        after: The time after which; now without.
        where: The setting, for the message.

    Raises:
        ConfigError: As `check_cron`.
    """
    zone = _zone(timezone, where)
    fields = _NICKNAMES.get(expression, expression).split()
    _check_fields(fields, expression, where)
    start = (after or datetime.datetime.now(datetime.UTC)).astimezone(zone)
    found: list[datetime.datetime] = []
    for wall in _walls(fields, start.replace(tzinfo=None) - 2 * _HOUR):
        found = sorted({*found, *(at for at in _instants(wall, zone) if at > start)})
        # An hour that comes twice has all of its times first, and then all of them once more.
        if len(found) >= count and wall > found[count - 1].astimezone(zone).replace(tzinfo=None) + 2 * _HOUR:
            break
    if not found:
        raise _wrong(expression, "it never comes", where)
    return [each.astimezone(zone) for each in found[:count]]


def _walls(fields: Sequence[str], start: datetime.datetime) -> Iterator[datetime.datetime]:
    """What a clock on the wall shows at each time, as if all days had 24 hours."""
    from cronsim import CronSim, CronSimError

    minute, hour, day, month, weekday = fields
    same = [minute, hour, _as_kubernetes(day, 1, _LAST_DAY), month, _as_kubernetes(weekday, 0, _LAST_WEEKDAY)]
    try:
        yield from CronSim(" ".join(same), start)
    except CronSimError:  # each field is right by itself: there is no such day
        return


def _as_kubernetes(field: str, first: int, last: int) -> str:
    """Days or weekdays in words that mean to `cronsim` what they mean to Kubernetes.

    A day must be right in both fields where one of them is `*`, else in one of them: `*/2` is no star there. And `1/2`
    goes up to Saturday, not to a Sunday that is 7.
    """
    terms = field.split(",")
    if {"*", "*/1"} & set(terms):
        return "*"
    return ",".join(
        re.sub(r"^\*/", f"{first}-{last}/", re.sub(r"^(\w+)/", rf"\1-{last}/", term)) for term in terms
    )


def _instants(wall: datetime.datetime, zone: datetime.tzinfo) -> Iterator[datetime.datetime]:
    """When the clocks of a zone show a time: twice in an hour that winter time repeats, never in one that summer time
    leaves out. Kubernetes starts at each of these."""
    for fold in (0, 1):
        at = wall.replace(tzinfo=zone, fold=fold).astimezone(datetime.UTC)
        if at.astimezone(zone).replace(tzinfo=None, fold=0) == wall:
            yield at


def _check_fields(fields: list[str], expression: str, where: str) -> None:
    from cronsim import CronSim, CronSimError

    if len(fields) == 1 and fields[0].startswith("@"):
        raise _wrong(expression, f"no such nickname{near_match(fields[0], list(_NICKNAMES))}", where)
    if len(fields) != len(_FIELDS):
        some = f"it has {len(fields)} field{'' if len(fields) == 1 else 's'}"
        raise _wrong(expression, f"{some}, a schedule has {len(_FIELDS)}", where)
    for at, (field, (name, values)) in enumerate(zip(fields, _FIELDS.items(), strict=True)):
        # Further letters are other programs' (`L`, `W`, `#`), and Kubernetes counts weekdays from 0 to 6.
        if not re.fullmatch(r"(?i)[\d*/,-]+|(?:[a-z]{3}|[\d*/,-])+", field):
            raise _wrong(expression, f"{field!r} is no {name}", where)
        if name == "weekday" and re.search(r"(?<![\d/])7(?!\d)", field):
            raise _wrong(expression, "Sunday is 0 or sun, Kubernetes knows no weekday 7", where)
        try:
            CronSim(" ".join(field if at == other else "*" for other in range(len(fields))), _SOME_DAY)
        except CronSimError:
            order = ", from the lower to the higher" if "-" in field else ""
            raise _wrong(expression, f"{field!r} is no {name}: these are {values}{order}", where) from None


def _zone(timezone: str, where: str) -> zoneinfo.ZoneInfo:
    try:
        if _NOT_NAMES.match(timezone):
            raise ValueError(timezone)
        return zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = sorted(name for name in zoneinfo.available_timezones() if not _NOT_NAMES.match(name))
        raise ConfigError(
            f"no time zone {timezone!r}{near_match(timezone, known)}",
            where=where,
            hint="For example Europe/Berlin, America/New_York or UTC",
        ) from None


def _wrong(expression: str, why: str, where: str) -> ConfigError:
    return ConfigError(f"{expression!r} is no schedule: {why}", where=where, hint=_EXAMPLE)
