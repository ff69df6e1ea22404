"""`sp-ray schema`: the JSON schema of a config."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sp_ray_ml.cli._output import print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schema", rich_help_panel="Start")(schema)


class _What(StrEnum):
    pipeline = "pipeline"
    cluster = "cluster"
    team = "team"
    prices = "prices"


_CLASSES = {
    _What.pipeline: "sp_ray_ml.pipeline:Pipeline",
    _What.cluster: "sp_ray_ml.cluster:ClusterSettings",
    _What.team: "sp_ray_ml.cluster:Team",
    _What.prices: "sp_ray_ml.cluster:Prices",
}


def schema(
    what: Annotated[
        _What, typer.Argument(metavar="[WHAT]", help="Of a pipeline, a cluster, a team or a price table.")
    ] = _What.pipeline,
) -> None:
    """Print the JSON schema of a config, for editors.

    With [cyan]sp-ray schema > sp-ray.json[/] and this first line in the config, an editor that knows YAML's language server completes keys, explains them and marks mistakes:

    [cyan]# yaml-language-server: $schema=sp-ray.json[/]
    """
    from sp_ray_ml._import_path import import_object
    from sp_ray_ml.config import json_schema

    print_json(json_schema(import_object(_CLASSES[what])))
