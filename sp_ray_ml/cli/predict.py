"""`sp-ray predict`: score without training, with the predictor of a run on the warehouse as it is now."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_ray_ml.cli._cluster_options import Context, Kubeconfig, Namespace
from sp_ray_ml.cli._options import ConfigFile, Overrides, TextOrJson
from sp_ray_ml.cli._output import Output, print_json, say
from sp_ray_ml.cli._run_cluster import ClusterName, ShareNodes, again, with_cluster

if TYPE_CHECKING:
    from sp_ray_ml._predict_job import PredictResult
    from sp_ray_ml.pipeline import Pipeline

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
            metavar="PATH|URI|MODULE:CLASS",
            help="A run's folder, a predictor's folder, or an MLflow model ([cyan]models:/NAME@champion[/]); for the rows of a `table` also a `Predictor` class of your own ([cyan]my_module:Risk[/]). Without, that of the config's run.",
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
    cluster: ClusterName = None,
    namespace: Namespace = None,
    share_nodes: ShareNodes = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Predict with what was trained, on the warehouse as it is now, and write the predictions.

    Recommendations take in the events since the training, and users and items that are new. Nothing is trained. On a cluster it is done as `sp-ray run` does. [dim]Exit codes: 0 done, 1 a step failed, 2 a mistake in the config or the data, 130 interrupted.[/]
    """
    from sp_ray_ml import pipeline as library
    from sp_ray_ml._console import Console
    from sp_ray_ml._on_cluster.watched import Detached, Stopped
    from sp_ray_ml._shown.predicted import predicted_as_json, show_predicted

    asked: dict[str, Any] = {"predictor": predictor, "all_events": all_events}
    pipeline = with_cluster(library.load_config(file, overrides), cluster, namespace, share_nodes=share_nodes)
    quiet = contextlib.redirect_stdout(sys.stderr) if output is Output.json else contextlib.nullcontext()
    try:
        with quiet, Console() as console:
            console.progress(0, 0, "getting ready")
            if isinstance(pipeline.cluster, str):
                result = library.predict(
                    file, overrides=overrides, **asked, reporter=console, verbose=verbose
                )
            else:
                named = [str(file), *(f"--set={text}" for text in overrides)]
                more = [f"--predictor={predictor}"] if predictor else []
                more += ["--all-events"] if all_events else []
                restart, training = (
                    again(command, cluster, namespace, kubeconfig, context, share_nodes=share_nodes)
                    for command in (["predict", *named, *more], ["run", *named])
                )
                where = {"kubeconfig": kubeconfig, "context": context, "training": training}
                result = _predict_there(pipeline, restart, asked, **where, reporter=console, verbose=verbose)
    except (Detached, Stopped) as end:
        say(str(end))
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        say("Interrupted. The output is as it was.")
        raise typer.Exit(130) from None
    if output is Output.json:
        print_json(predicted_as_json(result))
    else:
        show_predicted(result)


def _predict_there(
    pipeline: Pipeline, restart: str, asked: Mapping[str, Any], **options: Any
) -> PredictResult:
    from sp_ray_ml._on_cluster.run import run_on_cluster
    from sp_ray_ml._predict_job import PredictResult

    result = run_on_cluster(pipeline, restart=restart, predict=asked, fresh=False, **options)
    assert isinstance(result, PredictResult)
    return result
