"""What each step of a run will read and write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from sp_ray_ml._shown.page import escape, page, plain_table

if TYPE_CHECKING:
    from sp_ray_ml.pipeline import Pipeline, PlannedStep

__all__ = ["show_plan"]


def show_plan(pipeline: Pipeline, steps: Sequence[PlannedStep], file: TextIO | None = None) -> None:
    """Print what each step will read and write."""
    with page(file) as console:
        table = plain_table(show_header=False)
        for column in ("step", "does", "what"):
            table.add_column(column, style="dim" if column == "does" else "", overflow="fold")
        for step in steps:
            lines = [("reads", place) for place in step.reads] + [("writes", place) for place in step.writes]
            for i, (does, place) in enumerate(lines):
                repeated = i > 0 and lines[i - 1][0] == does
                name = f"[bold]{step.name}[/]" if i == 0 else ""
                table.add_row(name, "" if repeated else does, escape(place))
        console.print(table)
        console.print(f"\nNothing was done. The run's folder will be {escape(str(pipeline.folder))}")
