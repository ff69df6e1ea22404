"""`sp-ray validate`: check a config without doing any of it."""

from __future__ import annotations

import typer

from sp_ray_ml.cli._options import ConfigFile, Overrides
from sp_ray_ml.cli._output import print_data

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("validate", rich_help_panel="Run a pipeline")(validate)


def validate(file: ConfigFile, overrides: Overrides = []) -> None:  # noqa: B006 - Typer copies it
    """Check a config: every mistake at once, with its line. No work is done."""
    from sp_ray_ml.pipeline import load_config

    pipeline = load_config(file, overrides, check_only=True)
    print_data(f"{file}: OK ({pipeline.name})")
