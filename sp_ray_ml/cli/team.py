"""`sp-ray plan | apply | get | describe | delete team`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_ray_ml.cli._cluster_options import (
    Context,
    Form,
    Kubeconfig,
    group,
    print_object,
    printed,
    table,
    tell_notes,
)
from sp_ray_ml.cli._output import print_data, say

if TYPE_CHECKING:
    from sp_ray_ml.cluster._team_plan import TeamPlan

__all__ = ["build", "delete", "describe", "get", "plan"]

_Opt = typer.Option

Name = Annotated[str, typer.Argument(metavar="NAME", help="The team's name.", show_default=False)]
File = Annotated[Path, _Opt("--file", "-f", metavar="FILE", help="The team file.", show_default=False)]
Yes = Annotated[bool, _Opt("--yes", "-y", help="Do not ask.")]
Adopt = Annotated[
    bool, _Opt("--adopt", help="Let a namespace that is there and no team's become this one's.")
]
BelowUse = Annotated[bool, _Opt("--below-use", help="Let quotas be less than what runs.")]
WithClusters = Annotated[
    bool,
    _Opt("--with-clusters", help="Delete what runs in namespaces that go, the clusters' logs saved first."),
]
Force = Annotated[bool, _Opt("--force", help="Take over fields that others have set.")]
AnyForm = Annotated[Form, _Opt("-o", "--output", help="Form of what is printed.")]
InNamespace = Annotated[
    str | None,
    _Opt("-n", "--namespace", metavar="NS", help="One of its namespaces, if you may not list them.", show_default=False),
]  # fmt: skip


def build(verb: str) -> typer.Typer:
    """The app of a verb that has no other noun."""
    assert verb == "apply"
    return group("Make a team what its file says.", team=apply)


def plan(
    file: File,
    adopt: Adopt = False,
    below_use: BelowUse = False,
    with_clusters: WithClusters = False,
    force: Force = False,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say what applying a team file would change, field by field. Nothing is changed.

    [dim]Exit codes: 0 it can be applied; 1 something speaks against it; 2 a mistake in the file.[/]
    """
    from sp_ray_ml.cluster import plan_team

    found = plan_team(
        file, adopt=adopt, below_use=below_use, with_clusters=with_clusters, force=force, kubeconfig=kubeconfig,
        context=context,
    )  # fmt: skip
    if output in (Form.json, Form.yaml):
        print_object(found.as_dict(), output)
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def _show(found: TeamPlan) -> None:
    print_data("\n".join(found.lines()))
    sys.stdout.flush()
    tell_notes(found.notes)


def apply(
    file: File,
    yes: Yes = False,
    output: Annotated[
        Path | None,
        _Opt(
            "--output",
            metavar="DIR",
            help="Only write the manifests there, for a repository.",
            show_default=False,
        ),
    ] = None,
    adopt: Adopt = False,
    below_use: BelowUse = False,
    with_clusters: WithClusters = False,
    force: Force = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Make a team what its file says: show what changes, ask, do it, and remove what the file has dropped.

    [dim]Exit codes: 0 done, or nothing to do; 1 refused, or not confirmed; 2 a mistake in the file.[/]
    """
    if output is not None:
        _write(file, output, kubeconfig, context)
        return
    from sp_ray_ml.cluster import apply_team

    found = apply_team(
        file, adopt=adopt, below_use=below_use, with_clusters=with_clusters, force=force,
        confirm=_confirm("Apply it?", yes=yes), on_step=_step, kubeconfig=kubeconfig, context=context,
    )  # fmt: skip
    if found.changes:
        print_data(f"Applied team {found.team}")


def _write(file: Path, folder: Path, kubeconfig: Path | None, context: str | None) -> None:
    from sp_ray_ml.cluster.team import read_team, team_manifests, write_manifests

    team = read_team(file)
    objects, notes = team_manifests(team, kubeconfig=kubeconfig, context=context)
    written = write_manifests(folder, team.name, objects)
    for path in written:
        print_data(str(path))
    tell_notes(notes)


def _confirm(question: str, *, yes: bool) -> Callable[[TeamPlan], bool]:
    def confirm(found: TeamPlan) -> bool:
        from sp_ray_ml.errors import ConfigError

        _show(found)
        if yes or not found.changes:
            return True
        if not sys.stdin.isatty():
            raise ConfigError("nobody is here to be asked", hint="Say it beforehand: --yes")
        if not typer.confirm(question, err=True):
            say("Nothing was changed.")
            raise typer.Exit(1)
        return True

    return confirm


def _step(text: str) -> None:
    if text.startswith(("deleting", "saving")):  # what takes its time
        say(f"{text} …")
    elif text.startswith("logs of"):
        say(text)


def delete(
    name: Name,
    yes: Yes = False,
    with_clusters: WithClusters = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Remove a team with its namespaces and all that is in them. One that was there before the team stays."""
    from sp_ray_ml.cluster import delete_team

    found = delete_team(
        name, with_clusters=with_clusters, confirm=_confirm("Delete all of it?", yes=yes), on_step=_step,
        kubeconfig=kubeconfig, context=context,
    )  # fmt: skip
    print_data(f"Deleted team {found.team}")
    if any(change.action == "remove" and change.kind == "Namespace" for change in found.changes):
        say("Its namespaces go when all in them is gone: kubectl get namespaces --watch")


def get(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this one.", show_default=False)
    ] = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List the teams, and what is used of their quotas."""
    from sp_ray_ml.cluster import describe_team, list_teams

    found = list_teams(kubeconfig=kubeconfig, context=context)
    if name:
        found = [each for each in found if each.name == name] or [
            describe_team(name, kubeconfig=kubeconfig, context=context)
        ]
    if not printed(found, output, lambda each: each.as_dict(), lambda each: f"team/{each.name}", "No teams."):
        heads = ["NAME", "NAMESPACES", "OWNERS", "CLUSTERS", "CPUS", "MEMORY", "GPUS"]
        table([heads, *(each.row() for each in found)])


def describe(
    name: Name,
    namespace: InNamespace = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say who belongs to a team, what it may use and uses, and what its members' clusters are by default."""
    from sp_ray_ml.cluster import describe_team

    found: Any = describe_team(name, namespace, kubeconfig=kubeconfig, context=context)
    if output in (Form.json, Form.yaml):
        print_object(found.as_dict(), output)
    elif output is Form.name:
        print_data(f"team/{name}")
    else:
        print_data("\n".join(found.lines()))
