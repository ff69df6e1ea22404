"""`sp-ray connect | ssh | submit cluster`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sp_ray_ml.cli._cluster_options import Context, Kubeconfig, Name, Namespace, find, group, pairs
from sp_ray_ml.cli._output import print_data, say

__all__ = ["build"]


def build(verb: str) -> typer.Typer:
    """The app of a verb."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "connect": ("Forward a cluster's ports to this machine.", connect),
        "ssh": ("Open a shell on a cluster's head, or run a command there.", ssh),
        "submit": ("Run a command on a cluster as a job.", submit),
    }
    help, command = commands[verb]
    return group(help, command)


def connect(
    name: Name,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Forward client, dashboard, notebook and VS Code ports to this machine, until Ctrl-C."""
    cluster = find(name, namespace, kubeconfig, context)
    with cluster.connect(check_versions=False) as connection:
        for line in connection.lines():
            print_data(line)
        sys.stdout.flush()
        say("Ctrl-C ends it.")
        connection.serve()


def ssh(
    name: Name,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- CMD]", help="Run this instead of a shell.", show_default=False),
    ] = None,
    namespace: Namespace = None,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="Speak SSH on standard input and output: for ssh's ProxyCommand.")
    ] = False,
    config: Annotated[
        bool, typer.Option("--config", help="Print the block for ~/.ssh/config, for VS Code Remote.")
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Open a shell on a cluster's head, or run a command there; its exit code is this one's."""
    from sp_ray_ml.cluster import _ssh

    cluster = find(name, namespace, kubeconfig, context)
    if config:
        print_data(_ssh.ssh_config(cluster.name, cluster.namespace, kubeconfig=kubeconfig, context=context))
        return
    code = _ssh.proxy(cluster) if proxy else cluster.ssh(command or [])
    raise typer.Exit(code)


def submit(
    name: Name,
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD", help="What to run on the head.", show_default=False)
    ],
    namespace: Namespace = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder here that the job starts in there.", show_default=False),
    ] = None,
    env: Annotated[
        list[str],
        typer.Option("--env", metavar="KEY=VALUE", help="Environment variable. May be given several times."),
    ] = [],  # noqa: B006 - Typer copies it
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show what it prints, until it ends.")
    ] = True,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Run a command on a cluster as a Ray job. [dim]Exit code 1 if the job fails or is stopped.[/]"""
    import shlex

    from sp_ray_ml.errors import ClusterError

    cluster = find(name, namespace, kubeconfig, context)
    job = cluster.submit(shlex.join(command), working_dir=working_dir, env=pairs(env, "--env"))
    say(f"Job {job.id}")
    if not wait:
        print_data(job.id)
        return
    try:
        status = job.wait(lambda text: print_data(text.rstrip("\n")))
    except KeyboardInterrupt:
        say(f"Interrupted. The job goes on: sp-ray logs cluster {name} -n {cluster.namespace} --job {job.id}")
        raise typer.Exit(130) from None
    if status == "STOPPED":
        raise ClusterError("the job was stopped before its end", where=job.id)
