"""`sp-ray run`: run a pipeline, or say what it would do."""

from __future__ import annotations

import contextlib
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sp_ray_ml.cli._options import ConfigFile, Overrides, TextOrJson
from sp_ray_ml.cli._output import Output, print_json, say

if TYPE_CHECKING:
    from sp_ray_ml.pipeline import Pipeline

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
) -> None:
    """Run a pipeline, or go on with one that was interrupted or edited.

    Steps whose input, settings and code have not changed are kept. [dim]Exit codes: 0 done, 1 a step failed, 2 a mistake in the config or the data, 130 interrupted.[/]
    """
    from sp_ray_ml.pipeline import load_config

    pipeline = load_config(file, overrides)
    if dry_run:
        _print_plan(pipeline, output)
    else:
        again = shlex.join(["sp-ray", "run", str(file), *(f"--set={text}" for text in overrides)])
        _run(pipeline, again, fresh=fresh, verbose=verbose, output=output)


def _print_plan(pipeline: Pipeline, output: Output) -> None:
    from dataclasses import asdict

    from sp_ray_ml._results import show_plan
    from sp_ray_ml.pipeline import plan

    steps = plan(pipeline)
    if output is Output.json:
        print_json([asdict(step) for step in steps])
    else:
        show_plan(pipeline, steps)


def _run(pipeline: Pipeline, again: str, *, fresh: bool, verbose: bool, output: Output) -> None:
    from sp_ray_ml import pipeline as library
    from sp_ray_ml._console import Console
    from sp_ray_ml._results import as_json, show_result

    # What a user's own code prints must not end up in the JSON.
    quiet = contextlib.redirect_stdout(sys.stderr) if output is Output.json else contextlib.nullcontext()
    try:
        with quiet, Console() as console:
            console.progress(0, 0, "getting ready")
            result = library.run(pipeline, fresh=fresh, reporter=console, verbose=verbose)
    except KeyboardInterrupt:
        kept = (
            f"What is done is kept in {pipeline.folder}"
            if pipeline.folder.exists()
            else "Nothing was done yet"
        )
        say(f"Interrupted. {kept}; go on with: {again}")
        raise typer.Exit(130) from None
    except Exception as error:
        log = pipeline.folder / "run.log"
        if log.exists():
            error.add_note(f"Details: {log}")
        raise
    if output is Output.json:
        print_json(as_json(result))
    else:
        show_result(result)
