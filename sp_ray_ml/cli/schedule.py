"""`sp-ray schedule`, `sp-ray get schedules` and `sp-ray delete schedule`: pipelines that Kubernetes starts by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_ray_ml.cli._cluster_options import (
    Context,
    Form,
    Kubeconfig,
    Namespace,
    as_yaml,
    printed,
    table,
    tell_notes,
)
from sp_ray_ml.cli._options import ConfigFile, Overrides
from sp_ray_ml.cli._output import print_data, print_json, say

if TYPE_CHECKING:
    import datetime

    from sp_ray_ml.cluster._schedules import Found

__all__ = ["build", "delete", "get"]

_Opt = typer.Option
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)]


def build(verb: str) -> typer.Typer:
    """The app of the verb."""
    app = typer.Typer(add_completion=False)
    app.command(verb)(schedule)
    return app


def schedule(
    file: ConfigFile,
    cron: Annotated[
        str,
        _Opt(
            metavar="'MIN HOUR DAY MONTH WEEKDAY'",
            help="When: [cyan]'0 3 * * *'[/] is every night at three.",
            show_default=False,
        ),
    ],
    timezone: Annotated[
        str, _Opt(metavar="ZONE", help="In which time zone: [cyan]Europe/Berlin[/].")
    ] = "UTC",
    name: Annotated[
        str | None,
        _Opt(metavar="NAME", help="The schedule's name; the pipeline's without.", show_default=False),
    ] = None,
    namespace: Namespace = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    dry_run: Annotated[bool, _Opt("--dry-run", help="Only print the manifests.")] = False,
    output: Annotated[Form, _Opt("-o", "--output", help="Form of the manifests: yaml or json.")] = Form.yaml,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Have Kubernetes run a pipeline at certain times, each time on a Ray cluster of its own.

    A CronJob submits a RayJob and waits for its end; no run begins beside another. The config and the files of this folder travel once, now, into the bucket of the runs. The same command again changes the schedule.
    """
    from sp_ray_ml._schedule import plan_schedule
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._schedule_manifest import shown
    from sp_ray_ml.cluster._schedules import make_schedule
    from sp_ray_ml.pipeline import load_config

    pipeline = load_config(file, overrides)
    with Api(kubeconfig, context) as api:
        found = plan_schedule(pipeline, cron, timezone, name, api, namespace=namespace, send=not dry_run)
        if dry_run:
            objects = [shown(each) for each in found.objects]
            if output is Form.json:
                print_json(objects)
            else:
                print_data(as_yaml(objects))
            tell_notes(
                [*found.notes, "nothing was made or sent: do so without --dry-run", _coming(found.times)]
            )
            return
        changed = make_schedule(api, found.objects)
    made = found.schedule
    print_data(f"{'Changed' if changed else 'Made'} schedule {made.name} in namespace {made.namespace}")
    print_data(_coming(found.times))
    tell_notes(found.notes)
    say(
        f"  See it:     sp-ray get schedules -n {made.namespace}\n"
        f"  Run it now: kubectl create job {made.name}-now --from=cronjob/{made.name} -n {made.namespace}\n"
        f"  Remove it:  sp-ray delete schedule {made.name} -n {made.namespace}"
    )


def _coming(times: Any) -> str:
    return "next times: " + ", ".join(_time(each) for each in times)


def _time(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} {time.tzinfo}"


def get(
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, _Opt("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    output: Annotated[Form, _Opt("-o", "--output", help="Form of what is printed.")] = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List the schedules of a namespace: when they come, and how the last run ended."""
    from dataclasses import asdict

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._schedules import list_schedules

    with Api(kubeconfig, context) as api:
        space = None if all_namespaces else namespace or api.namespace
        found = list_schedules(api, space)
    none = f"No schedules in {f'namespace {space}' if space else 'any namespace'}."
    if not printed(found, output, asdict, lambda each: each.name, none):
        wide = all_namespaces or output is Form.wide
        heading = ["SCHEDULE", "RUN", "CRON", "NEXT", "LAST", "STATE", *(["NAMESPACE"] if wide else [])]
        table([heading, *(_row(each, wide=wide) for each in found)])


def _row(found: Found, *, wide: bool) -> list[str]:
    from sp_ray_ml._cron import next_times
    from sp_ray_ml.errors import ConfigError

    try:
        coming = "suspended" if found.suspended else _time(next_times(found.cron, found.timezone, count=1)[0])
    except ConfigError:  # changed by hand into what we do not read
        coming = f"{found.cron} {found.timezone}"
    last = found.last or "never"
    more = [found.namespace] if wide else []
    return [found.name, found.run, found.cron, coming, last, found.state, *more]


def delete(
    name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """Delete a schedule; a run of it that is under way ends, what is done of it is kept."""
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._schedules import delete_schedule

    with Api(kubeconfig, context) as api:
        space = namespace or api.namespace
        ended = delete_schedule(api, space, name)
    print_data(f"Deleted schedule {name} in namespace {space}")
    if ended:
        say(f"Its runs under way end: {', '.join(ended)}")
