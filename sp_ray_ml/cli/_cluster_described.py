"""The options by which a command line describes a cluster: those of `create` and `plan`, each declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from sp_ray_ml.cli._cluster_options import pairs

__all__ = ["options_of", "with_cluster_options"]

_HEAD, _WORKERS, _LIFE, _WORK = "Head", "Workers", "Life time", "Workbench"
_PAIRS = {"env": "env", "label": "labels", "node_selector": "node_selector"}
"""Options of `KEY=VALUE`, by what `ClusterOptions` calls them."""


def _option(
    name: str, kind: Any, help: str, *declared: str, metavar: str | None = None, panel: str | None = None
) -> inspect.Parameter:
    default: Any = False if kind is bool else [] if kind == list[str] else None
    option = typer.Option(*declared, metavar=metavar, help=help, show_default=False, rich_help_panel=panel)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


_TEXT, _NUMBER, _TEXTS = str | None, int | None, list[str]
_OPTIONS = (
    _option("cpus_in_head", _TEXT, "CPUs of the head. [dim]default: 15[/]", metavar="CPUS", panel=_HEAD),
    _option("memory_in_head", _TEXT, "Memory of the head. [dim]default: 48Gi[/]", metavar="SIZE", panel=_HEAD),
    _option("worker_replicas", _NUMBER, "How many workers. [dim]default: 1[/]", metavar="N", panel=_WORKERS),
    _option("cpus_per_worker", _TEXT, "CPUs of each worker. [dim]default: 15[/]", metavar="CPUS", panel=_WORKERS),
    _option("memory_per_worker", _TEXT, "Memory of each worker. [dim]default: 48Gi[/]", metavar="SIZE", panel=_WORKERS),
    _option("gpus_per_worker", _NUMBER, "GPUs of each worker. [dim]default: 0[/]", metavar="N", panel=_WORKERS),
    _option("worker_gpu_type", _TEXT, "Their type: t4, a100, l4, h100, … [dim]default: any[/]", metavar="TYPE", panel=_WORKERS),
    _option("min_workers", _NUMBER, "Autoscaling: the least workers.", metavar="N", panel=_WORKERS),
    _option("max_workers", _NUMBER, "Autoscaling: the most workers.", metavar="N", panel=_WORKERS),
    _option("spot_workers", bool, "Workers on cheap nodes that may be taken away.", "--spot-workers", panel=_WORKERS),
    _option("cpu_request", _TEXT, "CPUs that must be free on a node for each pod, if less than it may use.", metavar="CPUS"),
    _option("memory_request", _TEXT, "Likewise of memory.", metavar="SIZE"),
    _option("image", _TEXT, "Image of all pods. [dim]default: Ray's own for this Ray and Python[/]", metavar="IMAGE"),
    _option("service_account", _TEXT, "Service account of the pods.", metavar="NAME"),
    _option("env", _TEXTS, "Environment variable. May be given several times.", metavar="KEY=VALUE"),
    _option("label", _TEXTS, "Label of the cluster and its pods. Likewise.", metavar="KEY=VALUE"),
    _option("node_selector", _TEXTS, "Label that nodes must have. Likewise.", metavar="KEY=VALUE"),
    _option("egress", _TEXTS, "What pods may reach beside DNS, the API server and each other. Likewise.", metavar="HOST:PORT"),
    _option("vscode_server", bool, "Run a VS Code server on the head.", "--vscode-server", panel=_WORK),
    _option("with_tutorials", bool, "Run JupyterLab on the head, with tutorials.", "--with-tutorials", panel=_WORK),
    _option("home_size", _TEXT, "Volume of the head's home. [dim]default: 10Gi for a workbench[/]", metavar="SIZE", panel=_WORK),
    _option("storage_class", _TEXT, "Its storage class.", metavar="NAME", panel=_WORK),
    _option("idle_timeout", _TEXT, "Suspend it when idle for so long, or never. [dim]default: 2h for a workbench[/]", metavar="TIME", panel=_LIFE),
    _option("ttl", _TEXT, "Delete it after so long, or never. [dim]default: 3d for a workbench[/]", metavar="TIME", panel=_LIFE),
    _option("black_box", _TEXT, "Where logs and Events are kept when it is deleted.", metavar="URL", panel=_LIFE),
    _option("insecure", bool, "No token, no NetworkPolicy, no restriction of the containers: whoever reaches the pods can run code in them.", "--insecure"),
)  # fmt: skip


def with_cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options where it stops taking arguments by their place; it gets them as its `**described`."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    by_place = [each for each in own if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    by_name = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
    signature = inspect.Signature([*by_place, *_OPTIONS, *by_name])
    command.__signature__ = signature  # type: ignore[attr-defined]  # inspect's own, and Typer's way to ask
    return command


def options_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, in the words of `ClusterOptions`; an option that was left out says nothing."""
    given = {key: value for key, value in described.items() if value is not None and value is not False}
    for name, key in _PAIRS.items():
        given[key] = pairs(given.pop(name, ()), f"--{name.replace('_', '-')}")
    return {key: value for key, value in given.items() if value not in (None, [])}
