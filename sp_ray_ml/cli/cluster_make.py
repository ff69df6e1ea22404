"""`sp-ray create | plan | scale | wait | suspend | resume | extend | delete cluster`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sp_ray_ml.cli import schedule, team
from sp_ray_ml.cli._cluster_described import options_of, with_cluster_options
from sp_ray_ml.cli._cluster_options import (
    Context,
    Form,
    Kubeconfig,
    Name,
    Namespace,
    Timeout,
    as_yaml,
    find,
    group,
    print_object,
    seconds_of,
    tell_notes,
)
from sp_ray_ml.cli._output import print_data, say

__all__ = ["build"]

_TIMEOUT = "15m"


def build(verb: str) -> typer.Typer:
    """The app of a verb."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "create": ("Create a Ray cluster on Kubernetes.", create),
        "plan": ("Say whether a cluster would fit, or what a team file would change.", plan),
        "scale": ("Change how many workers a group has.", scale),
        "wait": ("Wait until a cluster is usable.", wait),
        "suspend": ("Delete a cluster's pods and keep the rest.", suspend),
        "resume": ("Bring a suspended cluster back.", resume),
        "extend": ("Let a cluster live longer.", extend),
        "delete": ("Delete a cluster, a team or a schedule.", delete),
    }
    help, command = commands[verb]
    if verb == "delete":
        return group(help, command, team=team.delete, schedule=schedule.delete)
    if verb == "plan":
        return group(help, command, team=team.plan)
    return group(help, command)


_Opt = typer.Option

File = Annotated[
    Path | None,
    _Opt(
        "--file", "-f", metavar="FILE", help="YAML: our short form, or a full RayCluster.", show_default=False
    ),
]


@with_cluster_options
def create(
    name: Name,
    namespace: Namespace = None,
    file: File = None,
    *,
    wait_for: Annotated[
        str, _Opt(metavar="WHAT", help="Wait for [cyan]ready[/], [cyan]pods[/] or [cyan]workers=N[/].")
    ] = "ready",
    wait: Annotated[bool, _Opt("--wait/--no-wait", help="Wait until it is usable.")] = True,
    timeout: Timeout = _TIMEOUT,
    with_plan: Annotated[bool, _Opt("--plan/--no-plan", help="Find out first whether it can fit.")] = True,
    update: Annotated[
        bool, _Opt("--update", help="Change the cluster of this name, if it is another.")
    ] = False,
    force: Annotated[bool, _Opt("--force", help="With --update: take over what others have set.")] = False,
    dry_run: Annotated[bool, _Opt("--dry-run", help="Only print the manifests.")] = False,
    output: Annotated[Form, _Opt("-o", "--output", help="Form of what is printed.")] = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    **described: Any,
) -> None:
    """Create a Ray cluster and wait until it can be used.

    The same command again finds the same cluster. [dim]Exit codes: 0 usable, 1 it cannot come up or did not in time, 2 a mistake, 130 interrupted.[/]
    """
    options = options_of(described)
    if dry_run:
        _print_manifests(name, namespace, file, options, kubeconfig, context, output)
        return
    from sp_ray_ml.cli._cluster_console import ClusterConsole
    from sp_ray_ml.cluster import RayCluster

    with ClusterConsole(quiet=output is not Form.text) as console:
        try:
            cluster = RayCluster.create_cluster(
                name, namespace, settings=file, await_ready=wait, wait_for=wait_for,
                timeout_s=seconds_of(timeout), plan=with_plan, update=update, force=force, reporter=console,
                kubeconfig=kubeconfig, context=context, **options,
            )  # fmt: skip
        except KeyboardInterrupt:
            console.close()
            _say_what_exists(console, name)
            raise typer.Exit(130) from None
    _print_cluster(cluster, output)


def _say_what_exists(console: Any, name: str) -> None:
    cluster = console.cluster
    if cluster is None:
        say(f"Interrupted before cluster {name} was made; if it was after all, sp-ray get cluster shows it.")
        return
    place = f"{cluster.name} -n {cluster.namespace}"
    say(f"Interrupted. Cluster {cluster.name} exists in namespace {cluster.namespace} and goes on starting.")
    say(f"  Wait for it: sp-ray wait cluster {place}\n  Remove it:   sp-ray delete cluster {place}")


def _print_cluster(cluster: Any, output: Form) -> None:
    if output is Form.name:
        print_data(f"raycluster/{cluster.name}")
        return
    from sp_ray_ml.errors import KubernetesAccessError

    try:
        description = cluster.describe()
    except KubernetesAccessError as error:  # the cluster is made all the same
        tell_notes([f"it cannot be described: {error.message}"])
        return
    if output in (Form.json, Form.yaml):
        print_object(description.as_dict(), output)
    else:
        print_data(str(description))


def _print_manifests(
    name: str,
    namespace: str | None,
    file: Path | None,
    options: dict[str, Any],
    kubeconfig: Path | None,
    context: str | None,
    output: Form,
) -> None:
    from sp_ray_ml.cluster import manifests

    objects, notes = manifests(
        name, namespace, settings=file, kubeconfig=kubeconfig, context=context, **options
    )
    if output is Form.json:
        print_object({"apiVersion": "v1", "kind": "List", "items": objects}, output)
    else:
        print_data(as_yaml(objects))
    tell_notes(notes)


@with_cluster_options
def plan(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The cluster's name.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    file: File = None,
    *,
    output: Annotated[Form, _Opt("-o", "--output", help="Form of what is printed.")] = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    **described: Any,
) -> None:
    """Say whether a cluster fits now, after scaling up, or never, and why. Nothing is made.

    [dim]Exit codes: 0 it fits, now or after scaling up; 1 it never can.[/]
    """
    from sp_ray_ml.cluster import plan_cluster

    found = plan_cluster(
        name, namespace, settings=file, kubeconfig=kubeconfig, context=context, **options_of(described)
    )
    if output in (Form.json, Form.yaml):
        print_object(found.as_dict(), output)
    else:
        print_data("\n".join(found.lines()))
        tell_notes(found.notes)
    if found.verdict == "never_fits":
        raise typer.Exit(1)


def scale(
    name: Name,
    replicas: Annotated[int, _Opt(metavar="N", help="How many workers the group is to have.")],
    worker_group: Annotated[str, _Opt(metavar="GROUP", help="The worker group's name.")] = "worker",
    namespace: Namespace = None,
    wait: Annotated[bool, _Opt("--wait/--no-wait", help="Wait until it has them.")] = True,
    timeout: Timeout = _TIMEOUT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Change how many workers a group has."""
    from sp_ray_ml.cli._cluster_console import ClusterConsole

    cluster = find(name, namespace, kubeconfig, context)
    with ClusterConsole() as console:
        cluster.scale_worker_group(
            worker_group, replicas, await_ready=wait, timeout_s=seconds_of(timeout), reporter=console
        )
    print_data(f"Scaled worker group {worker_group} of cluster {name} to {replicas}")


def wait(
    name: Name,
    namespace: Namespace = None,
    wait_for: Annotated[
        str,
        _Opt(
            "--for",
            metavar="WHAT",
            help="[cyan]ready[/], [cyan]pods[/], [cyan]workers=N[/], [cyan]suspended[/] or [cyan]deleted[/].",
        ),
    ] = "ready",
    timeout: Timeout = _TIMEOUT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Wait until a cluster is usable, and say why it is not."""
    from sp_ray_ml.cli._cluster_console import ClusterConsole

    cluster = find(name, namespace, kubeconfig, context)
    with ClusterConsole() as console:
        cluster.wait(wait_for, timeout_s=seconds_of(timeout), reporter=console)
    print_data(f"Cluster {name}: {wait_for}")


def suspend(
    name: Name,
    namespace: Namespace = None,
    wait: Annotated[bool, _Opt("--wait/--no-wait", help="Wait until its pods are gone.")] = True,
    timeout: Timeout = _TIMEOUT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Delete a cluster's pods and keep the rest, its home's volume too."""
    from sp_ray_ml.cli._cluster_console import ClusterConsole

    cluster = find(name, namespace, kubeconfig, context)
    with ClusterConsole() as console:
        cluster.suspend(await_done=wait, timeout_s=seconds_of(timeout), reporter=console)
    print_data(f"Suspended cluster {name}")
    say(f"Bring it back: sp-ray resume cluster {name} -n {cluster.namespace}")


def resume(
    name: Name,
    namespace: Namespace = None,
    wait: Annotated[bool, _Opt("--wait/--no-wait", help="Wait until it is usable.")] = True,
    timeout: Timeout = _TIMEOUT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Bring a suspended cluster back."""
    from sp_ray_ml.cli._cluster_console import ClusterConsole

    cluster = find(name, namespace, kubeconfig, context)
    with ClusterConsole() as console:
        cluster.resume(await_ready=wait, timeout_s=seconds_of(timeout), reporter=console)
    print_data(f"Resumed cluster {name}")


def extend(
    name: Name,
    by: Annotated[str, _Opt("--by", metavar="TIME", help="How much longer: 4h, 2d.")] = "1d",
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Let a cluster live longer, and count it as used now."""
    until = find(name, namespace, kubeconfig, context).extend(by)
    print_data(f"Cluster {name} lives until {until.astimezone():%Y-%m-%d %H:%M}")


def delete(
    name: Name,
    namespace: Namespace = None,
    wait: Annotated[bool, _Opt("--wait/--no-wait", help="Wait until its pods are gone.")] = True,
    black_box: Annotated[
        bool, _Opt("--black-box/--no-black-box", help="Keep its logs, Events and jobs first.")
    ] = True,
    black_box_at: Annotated[
        str | None,
        _Opt("--black-box-at", metavar="URL", help="Where; a folder or any fsspec URL.", show_default=False),
    ] = None,
    missing_ok: Annotated[bool, _Opt("--missing-ok", help="That there is none is no error.")] = False,
    timeout: Timeout = _TIMEOUT,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Delete a cluster with its volumes, after its logs are saved."""
    from sp_ray_ml.errors import ClusterNotFoundError

    try:
        cluster = find(name, namespace, kubeconfig, context)
    except ClusterNotFoundError:
        if not missing_ok:
            raise
        say(f"There is no cluster {name}.")
        return
    kept = cluster.delete(
        await_gone=wait,
        black_box=black_box_at or black_box,
        missing_ok=missing_ok,
        timeout_s=seconds_of(timeout),
    )
    print_data(f"Deleted cluster {name} in namespace {cluster.namespace}")
    if kept:
        say(f"Its logs and Events: sp-ray describe --post-mortem {name} -n {cluster.namespace}")
