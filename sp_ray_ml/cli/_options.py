"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli._output import Output, print_data

__all__ = ["ConfigFile", "Overrides", "Runs", "TextOrJson", "help_without_command", "names_of_runs"]

ConfigFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The config, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a setting: [cyan]--set train.epochs=5[/]. May be given several times.",
        show_default=False,
    ),
]
Runs = Annotated[
    str, typer.Option("--runs", metavar="DIR|URL", help="Folder of the runs' folders, or its URL.")
]
TextOrJson = Annotated[Output, typer.Option("-o", "--output", help="Form of what is printed.")]


def names_of_runs(incomplete: str) -> list[str]:
    """The runs that an incomplete name may become, for the shell's completion."""
    return [file.parent.name for file in Path("runs").glob(f"{incomplete}*/run.json")]


def help_without_command(context: typer.Context) -> None:
    """The callback of a group of commands: without one, its help is what was asked for."""
    if context.invoked_subcommand is None:
        print_data(context.get_help())
