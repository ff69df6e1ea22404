"""`sp-ray init`: draft a config from one's own tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli._output import print_data, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init", rich_help_panel="Start")(init)


def init(
    warehouse: Annotated[
        str,
        typer.Argument(
            metavar="DIR|URL",
            help="A folder of Parquet files, a DuckDB file, or a warehouse's URL.",
            show_default=False,
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where to write it. [dim]default: the warehouse's name[/]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draft a config from your own tables.

    Finds the events, the users and the items by their columns, picks features by type and number of values, and says why in comments. A file that is there already is never overwritten.
    """
    from sp_ray_ml.draft import write_draft

    written = write_draft(warehouse, file)
    print_data(str(written))
    name = shlex.quote(str(written))
    say(
        f"Read it and change what you know better. Then run: sp-ray run {name} --dry-run\n{' ' * 45}sp-ray run {name}"
    )
