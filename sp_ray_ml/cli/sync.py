"""`sp-ray sync`: send what MLflow has not got of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli._output import print_data, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sync", rich_help_panel="Look at runs")(sync)


def sync(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="The run's folder.", show_default=False)
    ],
    uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="MLflow tracking URI. [dim]default: that of the run[/]", show_default=False
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="Give a silent server up after this long.", min=0)
    ] = 30.0,
) -> None:
    """Send MLflow what it has not got of a run, for instance because its server was away."""
    from sp_ray_ml._console import Console
    from sp_ray_ml.tracking import sync as send

    with Console().task("MLflow") as progress:
        progress(0, 0, "takes what is left")
        outcome = send(folder, uri=uri, wait_s=wait)
    for note in outcome.notes:
        say(f"note: {note}")
    if not outcome.sent:
        say(str(outcome))
        raise typer.Exit(1)
    print_data(f"{folder}: all is in MLflow (run {outcome.mlflow_run_id})")
