"""`sp-ray demo`: write the demo warehouse."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli._output import print_data, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", rich_help_panel="Start")(demo)


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder, or DuckDB file, to write into.", show_default=False)
    ],
    events: Annotated[int, typer.Option(metavar="N", help="How many events.")] = 60_000,
    users: Annotated[int, typer.Option(metavar="N", help="How many users.")] = 2_000,
    shows: Annotated[int, typer.Option(metavar="N", help="How many shows.")] = 600,
    days: Annotated[int, typer.Option(metavar="N", help="Over how many days.")] = 120,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed makes the same tables.")] = 0,
) -> None:
    """Write a made-up world of podcast listening, at any scale.

    Its tables are events, users and shows; new shows come out that nothing but their features can rank.
    """
    from sp_ray_ml._console import Console
    from sp_ray_ml.demo import write_demo

    with Console().task("demo") as progress:
        rows = write_demo(
            folder,
            users=users,
            shows=shows,
            events=events,
            days=days,
            seed=seed,
            progress=lambda done, total: progress(done, total, f"{done:,} of {total:,} events"),
        )
    print_data(f"{folder}: {', '.join(f'{count:,} {table}' for table, count in rows.items())}")
    say(f"Next: sp-ray init {shlex.quote(str(folder))}")
