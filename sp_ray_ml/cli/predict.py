"""`sp-ray predict`: score without training, with the predictor of a run on the warehouse as it is now."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from sp_ray_ml.cli._options import ConfigFile, Overrides, TextOrJson
from sp_ray_ml.cli._output import Output, print_json, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict", rich_help_panel="Run a pipeline")(predict)


def predict(
    file: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    predictor: Annotated[
        str | None,
        typer.Option(
            "--predictor",
            metavar="PATH|URI",
            help="A run's folder, a predictor's folder, or an MLflow model ([cyan]models:/NAME@champion[/]). Without, that of the config's run.",
            show_default=False,
        ),
    ] = None,
    all_events: Annotated[
        bool,
        typer.Option(
            "--all-events",
            help="Read the whole table of events, for those that were written late; without, only what came since the training.",
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the libraries print and log.")
    ] = False,
    output: TextOrJson = Output.text,
) -> None:
    """Predict with what was trained, on the warehouse as it is now, and write the predictions.

    Recommendations take in the events since the training, and users and items that are new. Nothing is trained. [dim]Exit codes: 0 done, 1 a step failed, 2 a mistake in the config or the data, 130 interrupted.[/]
    """
    from sp_ray_ml import pipeline as library
    from sp_ray_ml._console import Console
    from sp_ray_ml._results import predicted_as_json, show_predicted

    quiet = contextlib.redirect_stdout(sys.stderr) if output is Output.json else contextlib.nullcontext()
    try:
        with quiet, Console() as console:
            console.progress(0, 0, "getting ready")
            result = library.predict(
                file,
                overrides=overrides,
                predictor=predictor,
                all_events=all_events,
                reporter=console,
                verbose=verbose,
            )
    except KeyboardInterrupt:
        say("Interrupted. The output is as it was.")
        raise typer.Exit(130) from None
    if output is Output.json:
        print_json(predicted_as_json(result))
    else:
        show_predicted(result)
