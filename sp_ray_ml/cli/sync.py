"""`sp-ray sync`: send what MLflow has not got of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli._options import Runs, names_of_runs
from sp_ray_ml.cli._output import print_data, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sync", rich_help_panel="Look at runs")(sync)


def sync(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER|URL",
            help="A run's name, its folder, or its URL.",
            show_default=False,
            autocompletion=names_of_runs,
        ),
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
    folder: Runs = "runs",
) -> None:
    """Send MLflow what it has not got of a run, for instance because its server was away.

    A run at a URL has a journal there: it is sent to your own MLflow, also while the run goes on, and as often as you like: nothing is sent twice. Yours is what --uri or MLFLOW_TRACKING_URI names, else mlflow.db in runs/, which [cyan]sp-ray ui[/] shows.
    """
    from sp_ray_ml._console import Console
    from sp_ray_ml._remote import below, is_remote
    from sp_ray_ml.tracking import sync as send

    place = run if is_remote(run) or Path(run).exists() else below(folder, run)
    with Console().task("MLflow") as progress:
        progress(0, 0, "takes what is left")
        outcome = send(place, uri=uri, wait_s=wait)
    for note in outcome.notes:
        say(f"note: {note}")
    if not outcome.sent:
        say(str(outcome))
        raise typer.Exit(1)
    what = "all so far" if outcome.running else "all"
    print_data(f"{place}: {what} is in MLflow (run {outcome.mlflow_run_id})")
