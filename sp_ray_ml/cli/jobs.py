"""`sp-ray attach | stop JOB`, `sp-ray logs JOB` and `sp-ray get jobs`: runs on clusters, from any machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sp_ray_ml.cli._cluster_options import Context, Form, Kubeconfig, Namespace, printed, table
from sp_ray_ml.cli._options import TextOrJson
from sp_ray_ml.cli._output import Output, print_data, print_json, say

if TYPE_CHECKING:
    from sp_ray_ml.cluster._run_jobs import RunJob

__all__ = ["build", "get", "logs"]

JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id: see sp-ray get jobs.", show_default=False)
]


def build(verb: str) -> typer.Typer:
    """The app of a verb."""
    app = typer.Typer(add_completion=False)
    if verb == "attach":
        app.command(verb)(attach)
    else:
        app.command(verb)(stop)
    return app


def get(
    namespace: Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")
    ] = False,
    output: Annotated[Form, typer.Option("-o", "--output", help="Form of what is printed.")] = Form.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """List the runs on the clusters of a namespace, the latest first."""
    from dataclasses import asdict

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._run_jobs import list_run_jobs

    with Api(kubeconfig, context) as api:
        space = None if all_namespaces else namespace or api.namespace
        jobs = list_run_jobs(api, space, ask=output is not Form.name)
    none = f"No jobs in {f'namespace {space}' if space else 'any namespace'}."
    if not printed(jobs, output, asdict, lambda job: job.id, none):
        wide = all_namespaces or output is Form.wide
        heading = [
            "JOB",
            "STATE",
            "RUN",
            "CLUSTER",
            "STARTED",
            "BY",
            *(["NAMESPACE", "RUNS"] if wide else []),
        ]
        table([heading, *(_row(job, wide=wide) for job in jobs)])


def _row(job: RunJob, *, wide: bool) -> list[str]:
    import datetime

    from sp_ray_ml.cluster._lifetime_text import read_time, span

    age = datetime.datetime.now(datetime.UTC) - read_time(job.submitted)
    again = f" (start {job.attempt})" if job.attempt > 1 else ""
    more = [job.namespace, job.runs] if wide else []
    return [job.id, f"{job.state}{again}", job.run, job.cluster, f"{span(age)} ago", job.by, *more]


def attach(
    job: JobId,
    namespace: Namespace = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the libraries print and log.")
    ] = False,
    output: TextOrJson = Output.text,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Follow a run on a cluster to its end, as `sp-ray run` does. [dim]Exit codes: those of sp-ray run.[/]"""
    import contextlib

    from sp_ray_ml._console import Console
    from sp_ray_ml._job import RunResult
    from sp_ray_ml._on_cluster.run import attach as follow
    from sp_ray_ml._on_cluster.watched import Detached, Stopped
    from sp_ray_ml._shown.predicted import predicted_as_json, show_predicted
    from sp_ray_ml._shown.result import as_json, show_result
    from sp_ray_ml.cluster._api import Api

    quiet = contextlib.redirect_stdout(sys.stderr) if output is Output.json else contextlib.nullcontext()
    try:
        with Api(kubeconfig, context) as api, quiet, Console() as console:
            result = follow(api, namespace or api.namespace, job, console, verbose=verbose)
    except (Detached, Stopped) as end:
        say(str(end))
        raise typer.Exit(130) from None
    if output is Output.json:
        print_json(as_json(result) if isinstance(result, RunResult) else predicted_as_json(result))
    elif isinstance(result, RunResult):
        show_result(result)
    else:
        show_predicted(result)


def stop(
    job: JobId, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """Stop a run on a cluster. What is done of it is kept, and goes on with the next start."""
    from sp_ray_ml._on_cluster.run import stop as stop_job
    from sp_ray_ml.cluster._api import Api

    with Api(kubeconfig, context) as api:
        for line in stop_job(api, namespace or api.namespace, job):
            print_data(line)


def logs(
    job: JobId,
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until it ends.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Print what a run on a cluster has printed."""
    from sp_ray_ml._on_cluster.events import Reader
    from sp_ray_ml.cluster import RayCluster
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._jobs import follow as follow_log
    from sp_ray_ml.cluster._kinds import RAY_CLUSTER
    from sp_ray_ml.cluster._run_jobs import find_job, job_of
    from sp_ray_ml.errors import ClusterNotFoundError

    with Api(kubeconfig, context) as api:
        found, body = find_job(api, namespace or api.namespace, job)
        if found.by_operator and not found.cluster:
            raise ClusterNotFoundError(
                f"job {job} has no cluster now, so nothing of what it prints is there",
                where=f"namespace {found.namespace}", hint=f"What it waits for: {found.command('attach')}",
            )  # fmt: skip
        if found.by_operator:
            body = api.get(RAY_CLUSTER, found.namespace, found.cluster)
        cluster = RayCluster(api, body)
        cluster.check_not_suspended()
        with cluster.dashboard() as dashboard:
            ray_job, reader = job_of(dashboard, found), Reader(None, print_data)
            try:
                for text in follow_log(ray_job) if follow else ray_job.printed():
                    reader.feed(text)
                    sys.stdout.flush()
                reader.close()
            except ClusterNotFoundError as error:
                raise ClusterNotFoundError(
                    f"job {job} was lost with the head of its cluster, and what it had printed",
                    where=error.where, hint=f"What is done is kept in {found.runs}/{found.run}, with a log of its own",
                ) from error  # fmt: skip
