"""`sp-ray recommend`: ask a finished run for recommendations."""

from __future__ import annotations

from typing import Annotated

import typer

from sp_ray_ml.cli._options import Runs, TextOrJson, names_of_runs
from sp_ray_ml.cli._output import Output, print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("recommend", rich_help_panel="Run a pipeline")(recommend)


def recommend(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PATH",
            help="A run's name, its folder or URL, a predictor's, or an MLflow model's URI.",
            show_default=False,
            autocompletion=names_of_runs,
        ),
    ],
    users: Annotated[
        list[str],
        typer.Option(
            "--user", metavar="ID", help="A user's id. May be given several times.", show_default=False
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="How many items a user.", min=1)] = 10,
    folder: Runs = "runs",
    output: TextOrJson = Output.text,
) -> None:
    """Print the best items for some users; what they have had is left out."""
    from sp_ray_ml._shown.recommended import recommendations, show_recommendations

    ranked = recommendations(run, users, k, runs=folder)
    if output is Output.json:
        print_json(ranked)
    else:
        show_recommendations(ranked)
