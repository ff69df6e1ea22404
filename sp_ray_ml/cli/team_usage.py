"""`sp-ray top` and `sp-ray report team`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sp_ray_ml.cli._cluster_options import (
    Context,
    Form,
    Kubeconfig,
    Namespace,
    group,
    print_object,
    printed,
    table,
    tell_notes,
)
from sp_ray_ml.cli._output import say

__all__ = ["build"]

_Opt = typer.Option

PriceTable = Annotated[
    Path | None, _Opt("--prices", metavar="FILE", help="Price table, for the costs.", show_default=False)
]
AnyForm = Annotated[Form, _Opt("-o", "--output", help="Form of what is printed.")]


class By(StrEnum):
    """What a row is of."""

    team = "team"
    cluster = "cluster"
    person = "person"


def build(verb: str) -> typer.Typer:
    """The app of a verb."""
    if verb == "report":
        return group("Say what teams have used, and what it costs.", team=report)
    app = typer.Typer(add_completion=False)
    app.command()(top)
    return app


def top(
    team: Annotated[
        str | None, _Opt("--team", metavar="NAME", help="Of a team's namespaces.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, _Opt("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    prices: PriceTable = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say what clusters hold at this moment, and how much of it Ray has given to tasks and actors.

    What a notebook or a driver does by itself is not seen: Ray has given nothing to it.
    """
    from sp_ray_ml.cluster import usage_now

    rows = usage_now(
        team, namespace, all_namespaces=all_namespaces, prices=prices, kubeconfig=kubeconfig, context=context
    )
    if not printed(rows, output, lambda row: row, lambda row: f"raycluster/{row['name']}", "No clusters."):
        heads = ["TEAM", "NAMESPACE", "CLUSTER", "PERSON", "PODS", "CPUS", "USED", "GPUS", "USED", "COST/H"]
        cells = [heads, *map(_cells, rows)]
        kept = [at for at in range(len(heads)) if any(row[at] for row in cells[1:])]
        table([[row[at] for at in kept] for row in cells])
        tell_notes([f"{row['namespace']}/{row['name']}: Ray does not tell what it uses: {row['why']}" for row in rows if row["why"] and row["pods"]])  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    gpus = ", ".join(f"{count:g} {kind}" for kind, count in row["gpu"].items())
    return [
        row["team"], row["namespace"], row["name"], row["creator"], str(row["pods"]), f"{row['cpu']:g}",
        _amount(row["cpu_used"]), gpus, _amount(row["gpu_used"]),
        "" if row["cost_hour"] is None else f"{row['cost_hour']:.2f}",
    ]  # fmt: skip


def _amount(used: float | None) -> str:
    return "" if used is None else f"{round(used, 2 if used < 10 else 1):g}"


def report(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this team.", show_default=False)
    ] = None,
    by: Annotated[By, _Opt("--by", help="What a row is of.")] = By.cluster,
    since: Annotated[
        str | None,
        _Opt(
            metavar="WHEN",
            help="From this day on (2026-11-01), or so long back (30d), by whole days in UTC.",
            show_default=False,
        ),
    ] = None,
    prices: PriceTable = None,
    namespace: Annotated[
        str | None,
        _Opt(
            "-n",
            "--namespace",
            metavar="NS",
            help="One of its namespaces, if you may not list them.",
            show_default=False,
        ),
    ] = None,
    output: AnyForm = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say how many CPU- and GPU-hours a team, its clusters or its people have taken, used and left idle, and the cost.

    Hours are what pods asked for while they ran. Used is what Ray had given to tasks and actors when it was asked, every five minutes.
    """
    from sp_ray_ml.cluster import report_team

    found = report_team(
        name, by=by.value, since=_since(since), prices=prices, namespace=namespace, kubeconfig=kubeconfig, context=context
    )  # fmt: skip
    if output in (Form.json, Form.yaml):
        print_object(found.as_dict(), output)
        return
    if found.rows:
        table(found.table())
    else:
        say("No hours.")
    tell_notes(found.notes)


def _since(text: str | None) -> Any:
    """A day, or a time back from now.

    Raises:
        ConfigError: It is neither.
    """
    import datetime

    from sp_ray_ml.cluster._lifetime_text import read_duration
    from sp_ray_ml.errors import ConfigError

    if text is None:
        return None
    for read in (datetime.date.fromisoformat, read_duration):
        try:
            return read(text)
        except ValueError:
            continue
    raise ConfigError(
        f"expected a day, 2026-11-01, or a time such as 7d or 4w, got {text!r}", where="--since"
    )
