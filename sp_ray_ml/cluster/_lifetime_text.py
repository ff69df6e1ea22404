"""Times and durations as text: in annotations, and for people."""

from __future__ import annotations

import datetime
import re

__all__ = ["read_duration", "read_time", "show_time", "span", "write_duration", "write_time"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")
_LONGEST_S = 10_000 * 365 * 86_400


def read_time(text: str) -> datetime.datetime:
    """A time as we and Kubernetes write it.

    Raises:
        ValueError: It is none, or has no time zone.
    """
    found = datetime.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return found.astimezone(datetime.UTC)


def write_time(when: datetime.datetime) -> str:
    """A time for an annotation."""
    return when.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")


def show_time(when: datetime.datetime) -> str:
    """A time for people: `Fri 27 Nov 17:20 UTC`."""
    return f"{when.astimezone(datetime.UTC):%a %d %b %H:%M} UTC"


def read_duration(text: str) -> datetime.timedelta:
    """A duration as settings have it, `90s`, `15m`, `2h`, `3d` or `1w`; Pydantic is not needed here.

    Raises:
        ValueError: It is none.
    """
    match = _DURATION.fullmatch(text)
    if not match or float(match[1]) * _UNITS[match[2]] > _LONGEST_S:
        raise ValueError(f"expected a duration such as 90s, 15m, 2h or 3d, got {text!r}")
    return datetime.timedelta(seconds=float(match[1]) * _UNITS[match[2]])


def write_duration(value: datetime.timedelta) -> str:
    """A duration for an annotation."""
    seconds = value.total_seconds()
    unit = next((unit for unit in ("w", "d", "h", "m") if seconds and seconds % _UNITS[unit] == 0), "s")
    return f"{seconds / _UNITS[unit]:.6f}".rstrip("0").rstrip(".") + unit


def span(value: datetime.timedelta) -> str:
    """A duration for people, in its two largest units: `1 h 40 min`, `3 d`, `45 s`."""
    left = max(0, round(value.total_seconds()))
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size and len(parts) < 2:
            parts.append(f"{left // size} {name}")
            left %= size
    return " ".join(parts) or "0 s"
