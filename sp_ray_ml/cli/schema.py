"""`sp-ray schema`: the JSON schema of a config."""

from __future__ import annotations

import typer

from sp_ray_ml.cli._output import print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema", rich_help_panel="Start")(schema)


def schema() -> None:
    """Print the JSON schema of a config, for editors.

    With [cyan]sp-ray schema > sp-ray.json[/] and this first line in the config, an editor that knows YAML's language server completes keys, explains them and marks mistakes:

    [cyan]# yaml-language-server: $schema=sp-ray.json[/]
    """
    from sp_ray_ml.config import json_schema
    from sp_ray_ml.pipeline import Pipeline

    print_json(json_schema(Pipeline))
