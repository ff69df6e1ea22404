"""The last line of scripts whose peer is a limit."""

from __future__ import annotations


def within(name: str, value: float, limit: float, unit: str, *, digits: int) -> dict[str, object]:
    """Whether a value keeps its limit, the value rounded to so many digits."""
    return {
        "name": name,
        "ours": round(value, digits),
        "peer": limit,
        "unit": unit,
        "ratio": round(value / limit, 3),
        "target": 1.0,
        "holds": value <= limit,
    }
