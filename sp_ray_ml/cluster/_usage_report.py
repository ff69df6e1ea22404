"""Hours and money by team, cluster and person: sums of what is kept and of what runs now, and how they are shown."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.cluster._quantity import format_number
from sp_ray_ml.cluster._usage import NO_TYPE, total_of
from sp_ray_ml.cluster.team_prices import Prices

if TYPE_CHECKING:
    from sp_ray_ml.cluster._usage import Day, Entry

__all__ = ["By", "UsageReport", "UsageRow", "cost_of", "report_of"]

By = Literal["team", "cluster", "person"]


@dataclass(frozen=True)
class UsageRow:
    """Hours of one team, cluster or person.

    Attributes:
        name: Whose they are.
        cpu_hours: CPU-hours that pods asked for, and were given.
        cpu_used: The part of them that Ray had given to tasks and actors.
        cpu_idle: The part that it had given to nobody.
        cpu_unknown: The part during which Ray was not asked, or did not answer.
        gpu_hours: GPU-hours by type.
        gpu_used: GPU-hours that Ray had given away.
        gpu_idle: That it had given to nobody.
        gpu_unknown: During which it was not asked.
        memory_gib_hours: GiB-hours of memory that pods asked for.
        cost: What all of it costs; None without a price table.
    """

    name: str
    cpu_hours: float
    cpu_used: float
    cpu_idle: float
    cpu_unknown: float
    gpu_hours: Mapping[str, float]
    gpu_used: float
    gpu_idle: float
    gpu_unknown: float
    memory_gib_hours: float
    cost: float | None

    @classmethod
    def of(cls, name: str, total: Day, prices: Prices | None) -> UsageRow:
        """The row of a sum of days."""
        gpus = {kind: hours for kind, hours in (total.get("gpu") or {}).items() if hours}

        def parts(what: str, hours: float) -> tuple[float, float, float]:
            used, known = total.get(f"{what}_used", 0.0), total.get(f"{what}_known", 0.0)
            return used, max(0.0, known - used), max(0.0, hours - known)

        hours = total.get("cpu", 0.0)
        return cls(
            name, hours, *parts("cpu", hours), gpus, *parts("gpu", sum(gpus.values())), total.get("memory", 0.0),
            cost_of(total, prices) if prices else None,
        )  # fmt: skip

    def cells(self) -> list[str]:
        """The cells of a table."""
        gpus = sum(self.gpu_hours.values())
        types = ", ".join(f"{kind} {_hours(hours)}" for kind, hours in self.gpu_hours.items())
        return [
            self.name, _hours(self.cpu_hours), _hours(self.cpu_used), _hours(self.cpu_idle), _hours(self.cpu_unknown),
            _hours(gpus), _hours(self.gpu_used), _hours(self.gpu_idle), types,
            "" if self.cost is None else _money(self.cost),
        ]  # fmt: skip


def cost_of(total: Day, prices: Prices) -> float:
    """What hours cost; GPUs of a type without a price are left out."""
    gpus = sum(hours * prices.gpu_hour.get(kind, 0.0) for kind, hours in (total.get("gpu") or {}).items())
    return float(
        total.get("cpu", 0.0) * prices.cpu_hour + total.get("memory", 0.0) * prices.memory_gib_hour + gpus
    )


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.01 or not value else f"{value:.1g}"


def _hours(value: float) -> str:
    if 0 < value < 0.005:
        return "<0.01"
    return format_number(round(value, 1 if value >= 10 else 2))


@dataclass(frozen=True)
class UsageReport:
    """Used and idle hours, and what they cost.

    Attributes:
        by: What a row is of.
        since: The first day that counts, in UTC; None for all that is kept.
        rows: The rows, the dearest first.
        total: Their sum.
        currency: Of the costs; empty without a price table.
        notes: What the figures do not have.
    """

    by: By
    since: str | None
    rows: tuple[UsageRow, ...]
    total: UsageRow
    currency: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def table(self) -> list[list[str]]:
        """A heading, the rows and their sum; those of GPUs, costs and what was not asked only where there is some."""
        heads = [
            self.by.upper(), "CPU-HOURS", "USED", "IDLE", "NOT ASKED", "GPU-HOURS", "USED", "IDLE", "BY TYPE",
            f"COST {self.currency}".strip(),
        ]  # fmt: skip
        cells = [heads, *(row.cells() for row in self.rows), self.total.cells()]
        if self.since:
            cells[-1][0] += f" since {self.since} UTC"
        unasked = any(row[4] != "0" for row in cells[1:])
        gpus = any(row[5] != "0" for row in cells[1:])
        kept = [
            0,
            1,
            2,
            3,
            *([4] if unasked else ()),
            *(range(5, 9) if gpus else ()),
            *([9] if self.currency else ()),
        ]
        return [[row[at] for at in kept] for row in cells]


def report_of(
    teams: Mapping[str, Sequence[Entry]],
    by: By,
    *,
    since: datetime.date | None = None,
    prices: Prices | None = None,
    notes: Sequence[str] = (),
) -> UsageReport:
    """Sums of entries.

    Args:
        teams: The entries of each team, summed until now.
        by: What a row is of.
        since: The first day that counts.
        prices: The price table.
        notes: What the entries do not have.
    """
    first = since.isoformat() if since else ""
    sums: dict[str, list[Day]] = {}
    for team, entries in teams.items():
        for entry in entries:
            name = {
                "team": team,
                "cluster": f"{entry['namespace']}/{entry['name']}",
                "person": entry["creator"],
            }[by]
            sums.setdefault(name, []).extend(day for date, day in entry["days"].items() if date >= first)
    rows = [UsageRow.of(name, total_of(days), prices) for name, days in sums.items() if days]
    rows.sort(key=lambda row: (-(row.cost or 0.0), -row.cpu_hours, row.name))
    whole = total_of(day for days in sums.values() for day in days)
    found = [*notes, *_unpriced(whole, prices)]
    return UsageReport(
        by, first or None, tuple(rows), UsageRow.of("all", whole, prices), prices.currency if prices else "", tuple(found)
    )  # fmt: skip


def _unpriced(total: Day, prices: Prices | None) -> Iterator[str]:
    if prices is None:
        return
    for kind, hours in (total.get("gpu") or {}).items():
        if hours and kind not in prices.gpu_hour:
            what = f"type {kind}" if kind != NO_TYPE else "no named type (gpu_hour: any has their price)"
            yield f"not in the cost: {_hours(hours)} GPU-hours of {what}, which has no price"
