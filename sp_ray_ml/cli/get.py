"""`sp-ray get`: list what there is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sp_ray_ml.cli import cluster_look, jobs, schedule, team
from sp_ray_ml.cli._options import Runs, help_without_command
from sp_ray_ml.cli._output import print_data, print_json, say

__all__ = ["register"]


class _Form(StrEnum):
    text = "text"
    json = "json"
    name = "name"


def register(app: typer.Typer) -> None:
    """Add the command and what it gets."""
    get = typer.Typer(
        add_completion=False, help="List what there is: runs, clusters, jobs, schedules, teams."
    )
    get.callback(invoke_without_command=True)(help_without_command)
    get.command("runs")(runs)
    get.command("cluster")(cluster_look.get)
    get.command("clusters", hidden=True)(cluster_look.get)
    get.command("jobs")(jobs.get)
    get.command("job", hidden=True)(jobs.get)
    get.command("schedules")(schedule.get)
    get.command("schedule", hidden=True)(schedule.get)
    get.command("team")(team.get)
    get.command("teams", hidden=True)(team.get)
    app.add_typer(get, name="get", rich_help_panel="Look at runs")


def runs(
    folder: Runs = "runs",
    output: Annotated[_Form, typer.Option("-o", "--output", help="Form of what is printed.")] = _Form.text,
) -> None:
    """List the runs, the latest first: how they ended or where they are."""
    from sp_ray_ml._runs import list_runs

    found = list_runs(folder)
    if output is _Form.json:
        print_json(found)
    elif output is _Form.name:
        for run in found:
            print_data(run["name"])
    elif not found:
        say(f"No runs in {folder}.")
    else:
        from sp_ray_ml._shown.runs import show_runs

        show_runs(found)
