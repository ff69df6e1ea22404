"""`sp-ray get | describe | explain | logs cluster`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli import jobs, team
from sp_ray_ml.cli._cluster_options import (
    Context,
    Form,
    Kubeconfig,
    Name,
    Namespace,
    find,
    group,
    print_object,
    table,
)
from sp_ray_ml.cli._options import help_without_command
from sp_ray_ml.cli._output import print_data, say

__all__ = ["build", "get"]

AnyForm = Annotated[Form, typer.Option("-o", "--output", help="Form of what is printed.")]
BlackBoxAt = Annotated[
    str | None, typer.Option(metavar="URL", help="Where that lies, if it is not found.", show_default=False)
]


def build(verb: str) -> typer.Typer:
    """The app of a verb."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "describe": ("Say what a cluster or a team is, and how it is.", describe),
        "explain": ("Say why a cluster is not usable.", explain),
        "logs": ("Print what a run (sp-ray logs JOB), a cluster's pods or its jobs have printed.", logs),
    }
    help, command = commands[verb]
    if verb == "describe":
        return group(help, command, alone=describe_gone, team=team.describe)
    return group(help, command, of_job=jobs.logs if verb == "logs" else None)


def get(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")
    ] = False,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List the Ray clusters of a namespace."""
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._kinds import RAY_CLUSTER

    with Api(kubeconfig, context) as api:
        space = None if all_namespaces else namespace or api.namespace
        if output in (Form.json, Form.yaml):
            items = [
                each for each in api.list(RAY_CLUSTER, space)[0] if name in (None, each["metadata"]["name"])
            ]
            print_object({"apiVersion": "v1", "kind": "List", "items": items}, output)
            return
        found = [row for row in api.table(RAY_CLUSTER, space) if name in (None, row["metadata"]["name"])]
        if not found and space:
            api.check_namespace(space)
    if name and not found:
        find(name, namespace, kubeconfig, context)  # says that there is none, and what there is
    if output is Form.name:
        for row in found:
            print_data(f"raycluster/{row['metadata']['name']}")
    elif not found:
        say(f"No clusters in {f'namespace {space}' if space else 'any namespace'}.")
    else:
        from sp_ray_ml.cluster._describe import rows

        table(rows(found, wide=output is Form.wide or all_namespaces))


def describe(
    name: Name,
    namespace: Namespace = None,
    post_mortem: Annotated[
        bool, typer.Option("--post-mortem", help="Of one that was deleted: from its black box.")
    ] = False,
    black_box_at: BlackBoxAt = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say what a cluster is and how it is now; versions and addresses are asked from itself."""
    if post_mortem:
        _describe_post_mortem(name, namespace, black_box_at, output, kubeconfig, context)
        return
    description = find(name, namespace, kubeconfig, context).describe()
    if output in (Form.json, Form.yaml):
        print_object(description.as_dict(), output)
    elif output is Form.name:
        print_data(f"raycluster/{name}")
    else:
        print_data(str(description))
        if description.head_ip:
            say(
                "These addresses answer within the Kubernetes cluster only. From here: "
                f"sp-ray connect cluster {name} -n {description.namespace}"
            )
        if description.state != "ready":
            say(f"It is {description.state}. Why: sp-ray explain cluster {name} -n {description.namespace}")


def describe_gone(
    here: typer.Context,
    post_mortem: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Say what became of a cluster that was deleted: from its black box.",
            show_default=False,
        ),
    ] = None,
    namespace: Namespace = None,
    black_box_at: BlackBoxAt = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """The callback of `describe`: `sp-ray describe --post-mortem NAME` names no kind of thing, as only clusters end so."""
    if post_mortem is None:
        help_without_command(here)
    elif here.invoked_subcommand is None:
        _describe_post_mortem(post_mortem, namespace, black_box_at, output, kubeconfig, context)


def _describe_post_mortem(
    name: str,
    namespace: str | None,
    where: str | None,
    output: Form,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    from sp_ray_ml.cluster import RayCluster

    found = RayCluster.post_mortem(name, namespace, where=where, kubeconfig=kubeconfig, context=context)
    if output in (Form.json, Form.yaml):
        print_object(found.as_dict(), output)
    else:
        print_data("\n".join(found.lines()))


def explain(
    name: Name,
    namespace: Namespace = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say why a cluster is not usable, and what to do. [dim]Exit codes: 0 nothing is wrong, 1 something is.[/]"""
    from dataclasses import asdict

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._explain import explain as cause_of
    from sp_ray_ml.cluster._explain import render
    from sp_ray_ml.cluster._gather import gather

    find(name, namespace, kubeconfig, context)
    with Api(kubeconfig, context) as api:
        snapshot = gather(api, namespace or api.namespace, name)
    cause = cause_of(snapshot)
    if output in (Form.json, Form.yaml):
        print_object(asdict(cause) if cause else None, output)
    else:
        print_data("\n".join(render(snapshot)))
    if cause:
        raise typer.Exit(1)


def logs(
    name: Name,
    namespace: Namespace = None,
    worker_group: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="Of this group's workers. [dim]default: of the head[/]", show_default=False
        ),
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this job, until it ends.", show_default=False)
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Only so many lines of what there is already.", show_default=False, min=1
        ),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Print what a cluster's head, workers or jobs have printed."""
    import sys

    cluster = find(name, namespace, kubeconfig, context)
    if job:
        from sp_ray_ml.cluster._jobs import follow

        for text in follow(cluster.job(job), tail=tail):
            sys.stdout.write(text)
            sys.stdout.flush()
        return
    for pod, text in cluster.logs(worker_group=worker_group, tail=tail):
        say(f"--- {pod}")
        print_data(text.rstrip("\n"))
