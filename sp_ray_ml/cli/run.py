"""`sp-ray run`: run a pipeline, or say what it would do."""

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
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.pipeline import Pipeline, RunResult

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", rich_help_panel="Run a pipeline")(run)


def run(
    file: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; what this run left before is removed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the steps and what each will read and write.")
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
    """Run a pipeline, or go on with one that was interrupted or edited.

    Steps whose input, settings and code have not changed are kept. On a cluster it is followed from here; Ctrl-C asks whether to leave it to itself or to stop it. [dim]Exit codes: 0 done, 1 a step failed, 2 a mistake in the config or the data, 130 interrupted.[/]
    """
    from sp_ray_ml.pipeline import load_config

    pipeline = with_cluster(load_config(file, overrides), cluster, namespace, share_nodes=share_nodes)
    if dry_run:
        _print_plan(pipeline, output)
    else:
        command = ["run", str(file), *(f"--set={text}" for text in overrides)]
        restart = again(command, cluster, namespace, kubeconfig, context, share_nodes=share_nodes)
        where = {"kubeconfig": kubeconfig, "context": context}
        _run(pipeline, restart, where, fresh=fresh, verbose=verbose, output=output)


def _run_there(pipeline: Pipeline, restart: str, where: Mapping[str, Any], **options: Any) -> RunResult:
    from sp_ray_ml._on_cluster.run import run_on_cluster
    from sp_ray_ml.pipeline import RunResult

    result = run_on_cluster(pipeline, restart=restart, **where, **options)
    assert isinstance(result, RunResult)
    return result


def _print_plan(pipeline: Pipeline, output: Output) -> None:
    from dataclasses import asdict

    from sp_ray_ml._shown.plan import show_plan
    from sp_ray_ml.pipeline import plan

    steps = plan(pipeline)
    if output is Output.json:
        print_json([asdict(step) for step in steps])
    else:
        show_plan(pipeline, steps)


def _run(
    pipeline: Pipeline, restart: str, where: Mapping[str, Any], *, fresh: bool, verbose: bool, output: Output
) -> None:
    from sp_ray_ml import pipeline as library
    from sp_ray_ml._console import Console
    from sp_ray_ml._on_cluster.watched import Detached, Stopped
    from sp_ray_ml._shown.result import as_json, show_result

    # What a user's own code prints must not end up in the JSON.
    quiet = contextlib.redirect_stdout(sys.stderr) if output is Output.json else contextlib.nullcontext()
    try:
        with quiet, Console() as console:
            console.progress(0, 0, "getting ready")
            if isinstance(pipeline.cluster, str):
                result = library.run(pipeline, fresh=fresh, reporter=console, verbose=verbose)
            else:
                result = _run_there(pipeline, restart, where, fresh=fresh, reporter=console, verbose=verbose)
    except (Detached, Stopped) as end:
        say(str(end))
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        begun = isinstance(pipeline.folder, str) or pipeline.folder.exists()
        kept = f"What is done is kept in {pipeline.folder}" if begun else "Nothing was done yet"
        say(f"Interrupted. {kept}; go on with: {restart}")
        raise typer.Exit(130) from None
    except ConfigError:  # nothing was done, so there is no log
        raise
    except Exception as error:
        from sp_ray_ml._remote import below

        log = below(pipeline.folder, "log" if isinstance(pipeline.folder, str) else "run.log")
        if isinstance(log, str) or log.exists():
            error.add_note(f"Details: {log}")
        raise
    if output is Output.json:
        print_json(as_json(result))
    else:
        show_result(result)
