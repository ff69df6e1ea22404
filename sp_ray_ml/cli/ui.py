"""`sp-ray ui`: the runs in MLflow's pages."""

from __future__ import annotations

from typing import Annotated

import typer

from sp_ray_ml.cli._options import Runs
from sp_ray_ml.cli._output import print_data, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ui", rich_help_panel="Look at runs")(ui)


def ui(
    folder: Runs = "runs",
    port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65_535)] = 5000,
    uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="MLflow tracking URI, where the runs are not tracked in their folder."
        ),
    ] = None,
) -> None:
    """Open the runs in MLflow, on this machine only, until Ctrl-C."""
    from sp_ray_ml._console import Console
    from sp_ray_ml.tracking import Tracking, serve_ui

    console = Console()

    def ready(url: str) -> None:
        console.close()
        print_data(url)
        say("Ctrl-C ends it.")

    with console.task("MLflow") as progress:
        progress(0, 0, "is starting")
        serve_ui(Tracking(uri=uri), folder, port, ready)
