"""`sp-ray compare`: two runs on what both were tested on."""

from __future__ import annotations

from typing import Annotated

import typer

from sp_ray_ml.cli._options import Runs, TextOrJson, names_of_runs
from sp_ray_ml.cli._output import Output, print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", rich_help_panel="Look at runs")(compare)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="RUN_A",
            help="A run's name, folder or URL.",
            show_default=False,
            autocompletion=names_of_runs,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="RUN_B",
            help="The run to compare with it.",
            show_default=False,
            autocompletion=names_of_runs,
        ),
    ],
    by: Annotated[
        list[str],
        typer.Option(
            metavar="COLUMN",
            help="Compare each value of a column of [cyan]evaluate.by[/], too. May be given several times.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - Typer copies it
    bootstrap: Annotated[int, typer.Option(metavar="N", help="Replicates of the intervals.", min=10)] = 1_000,
    track: Annotated[bool, typer.Option(help="Log the report in MLflow, with both runs.")] = True,
    folder: Runs = "runs",
    output: TextOrJson = Output.text,
) -> None:
    """Print the paired difference of two runs with its interval, and write a report in HTML."""
    from sp_ray_ml._compare import compare_runs, show_comparison

    compared = compare_runs(a, b, runs=folder, by=by, bootstrap=bootstrap, track=track)
    if output is Output.json:
        print_json(compared.as_json())
    else:
        show_comparison(compared)
