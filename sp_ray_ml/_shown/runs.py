"""The runs of a folder, a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from sp_ray_ml._shown.page import escape, page, plain_table

__all__ = ["show_runs"]

_STATUS = {"finished": "green", "running": "cyan", "interrupted": "yellow"}


def show_runs(runs: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Print what `list_runs` found."""
    with page(file) as console:
        table = plain_table()
        measured = {
            name for run in runs for name in run.get("metrics") or {} if "@" in name and "/" not in name
        }
        k = max((int(name.partition("@")[2]) for name in measured), default=0)
        metrics = [name for name in (f"recall@{k}", f"ndcg@{k}") if name in measured]
        of_tables = {name for run in runs for name in run.get("metrics") or {}}
        metrics += [name for name in ("rmse", "log_loss", "accuracy") if name in of_tables]
        for name in ("name", "status", "step", "updated"):
            table.add_column(name, no_wrap=name != "status")
        for name in metrics:
            table.add_column(name, justify="right")
        for run in runs:
            status = str(run.get("status", "unknown"))
            values = [(run.get("metrics") or {}).get(name) for name in metrics]
            table.add_row(
                f"[bold]{escape(str(run['name']))}[/]",
                f"[{_STATUS.get(status, 'red')}]{status}[/]",
                "" if status == "finished" else str(run.get("step", "")),
                _ago(str(run.get("updated", ""))),
                *("–" if value is None else f"{value:.4f}" for value in values),
            )
        console.print(table)


def _ago(updated: str) -> str:
    import datetime

    try:
        seconds = (
            datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(updated)
        ).total_seconds()
    except (TypeError, ValueError):
        return ""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
