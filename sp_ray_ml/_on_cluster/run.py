"""`sp-ray run --cluster`: a pipeline on a cluster on Kubernetes, as if it ran here.

places, size ─▶ plan ─▶ cluster found or made ─▶ its Python asked ─▶ packages, job ─▶ followed ─▶ result
                                                                                  cluster removed
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._on_cluster.bring import bring, send_journal
from sp_ray_ml._on_cluster.ended import keep_stop
from sp_ray_ml._on_cluster.events import Result
from sp_ray_ml._on_cluster.follow import Follower, follow
from sp_ray_ml._on_cluster.hold import find_or_make, remove_cluster, removed_at_end, who_removes
from sp_ray_ml._on_cluster.places import working_folder
from sp_ray_ml._on_cluster.start import (
    ENTRYPOINT,
    Starts,
    Travels,
    environment_of,
    local_tracking,
    refuse_secrets,
)
from sp_ray_ml._on_cluster.watched import Detached, OutOfSightError, Stopped, Watched
from sp_ray_ml._predict_job import PREDICT
from sp_ray_ml._predict_sealed import check_trained
from sp_ray_ml._remote import join
from sp_ray_ml._runs import Reporter
from sp_ray_ml.cluster import _run_jobs
from sp_ray_ml.cluster.ray_cluster import RayCluster
from sp_ray_ml.cluster.run_settings import RunCluster, new_name
from sp_ray_ml.errors import ClusterError, SpRayError, StorageError
from sp_ray_ml.tracking._environment import user_name

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._run_jobs import RunJob
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["attach", "run_on_cluster", "stop"]


def run_on_cluster(
    p: Pipeline,
    *,
    fresh: bool,
    verbose: bool,
    reporter: Reporter,
    restart: str,
    kubeconfig: Path | None = None,
    context: str | None = None,
    predict: Mapping[str, Any] | None = None,
    training: str = "",
) -> Result:
    """Run a pipeline on its cluster and follow it, or predict there without training.

    Args:
        p: The pipeline; its `cluster` is a `RunCluster`.
        fresh: Start over.
        verbose: Print what its libraries print.
        reporter: Told of its steps.
        restart: The command line that goes on with it.
        kubeconfig: Path of a kubeconfig.
        context: Its context.
        predict: Predict with what was trained: `predictor` and `all_events`, as of `sp_ray_ml.pipeline.predict`.
        training: With `predict`, the command line that trains.

    Raises:
        ConfigError: The config is wrong, names what a cluster does not see, or the folder is too large. Nothing was
            made or sent.
        VersionMismatchError: The cluster's image cannot run it. Nothing was submitted.
        Detached: The user left it to itself.
        Stopped: It was stopped.
        SpRayError: A step failed, with what it raised; or the cluster.
    """
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.pipeline import plan, preflight_output

    wanted = p.cluster
    assert isinstance(wanted, RunCluster)
    reporter.progress(0, 0, "looking at what travels")
    id = new_name(p.name if predict is None else f"{p.name}-predict")
    travels = Travels.of(p, working_folder(), id, fresh=fresh, verbose=verbose, predict=predict)
    reporter.progress(0, 0, "checking the plan")
    if predict is not None:
        check_trained(p, predict["predictor"], training)
    plan(p)
    preflight_output(p)
    with tempfile.TemporaryDirectory(prefix="sp-ray-travels-") as folder, Api(kubeconfig, context) as api:
        job = _new_job(p, wanted, api, id)
        if predict is not None:  # its folder is within the run's; each night is a run of its own in MLflow
            job = replace(job, run=f"{p.name}/{PREDICT}", tracked=False)
        if wanted.submit == "rayjob":
            return _run_as_rayjob(p, wanted, api, job, travels, reporter, restart, verbose=verbose)
        travels = travels.kept(copies := Path(folder))
        cluster = find_or_make(api, wanted, job, reporter)
        with contextlib.closing(cluster), _held(api, cluster, id, reporter) as removed:
            starts = Starts(api, cluster, travels, copies, p, reporter, removed)
            started = starts.start(job)
            watched = Watched(api, cluster, started, starts.again, restart, removed=removed)
            mlflow = local_tracking(p)
            result = _follow(watched, reporter, verbose=verbose, restarts=wanted.restarts, mlflow=mlflow)
        return _home(result, job, reporter, mlflow)


def attach(api: Api, namespace: str, id: str, reporter: Reporter, *, verbose: bool) -> Result:
    """Follow a run that was started before, from any machine; its cluster is removed after it where it was made for it.

    Raises:
        ClusterNotFoundError: There is no such job.
        SpRayError: The run failed: what it raised.
    """
    job, body = _run_jobs.find_job(api, namespace, id)
    verb = "predict" if job.run.endswith(f"/{PREDICT}") else "run"
    restart = f"sp-ray {verb} FILE -n {namespace}"
    if job.by_operator:
        # What belongs to a schedule is cleared away by it.
        ours = bool(body["spec"].get("shutdownAfterJobFinishes")) and not body["metadata"].get(
            "ownerReferences"
        )
        return _follow_rayjob(api, job, reporter, restart, verbose=verbose, remove=ours)
    cluster = RayCluster(api, body)
    with contextlib.closing(cluster), _held(api, cluster, id, reporter) as removed:
        watched = Watched(api, cluster, job, None, restart, removed=removed)
        result = _follow(watched, reporter, verbose=verbose, restarts=0)
    return _home(result, job, reporter)


@contextlib.contextmanager
def _held(api: Api, cluster: RayCluster, id: str, reporter: Reporter) -> Iterator[bool]:
    """A cluster while a job on it is followed, removed after where it goes with the job; whether it does."""
    with removed_at_end(
        lambda: remove_cluster(api, cluster, id, reporter.note), reporter,
        detached=lambda: who_removes(api, cluster, id),
    ):  # fmt: skip
        yield _run_jobs.removed_with(cluster.manifest) == id


def _run_as_rayjob(
    p: Pipeline, wanted: RunCluster, api: Api, job: RunJob, travels: Travels, reporter: Reporter, restart: str, *,
    verbose: bool,
) -> Result:  # fmt: skip
    from sp_ray_ml._on_cluster.old_packages import remove_old
    from sp_ray_ml._on_cluster.rayjob import make_rayjob, plan_run
    from sp_ray_ml._on_cluster.store import RUN_URL, described, publish
    from sp_ray_ml.cluster._project_packages import own_package

    refuse_secrets(p)
    modules = [own_package(), *travels.projects]
    url = described(str(p.runs), travels.said, travels.folder, modules)[0]
    planned = plan_run(api, wanted, job, ENTRYPOINT, {RUN_URL: url, **environment_of(wanted)})
    reporter.progress(0, 0, "writing what travels beside the runs")
    publish(str(p.runs), travels.said, travels.folder, modules)
    try:
        remove_old(p.runs)
    except StorageError as error:
        reporter.note(f"what jobs of long ago have left beside the runs stays there: {error}")
    make_rayjob(api, job, planned)
    reporter.note(
        f"RayJob {job.id} in namespace {job.namespace}; from another machine: {job.command('attach')}"
    )
    return _follow_rayjob(
        api,
        job,
        reporter,
        restart,
        verbose=verbose,
        remove=wanted.lifetime == "job",
        mlflow=local_tracking(p),
    )


def _follow_rayjob(
    api: Api, job: RunJob, reporter: Reporter, restart: str, *, verbose: bool, remove: bool,
    mlflow: str | None = None,
) -> Result:  # fmt: skip
    from sp_ray_ml._on_cluster.rayjob import WatchedRayJob

    watched = WatchedRayJob(api, job, restart, reporter.note, removed=remove)

    def clear_away() -> None:
        try:
            place = watched.remove()
            kept = f"; the logs of its cluster are kept in {place}" if place else ""
            reporter.note(f"removed RayJob {job.id}{kept}")
        except SpRayError as error:
            reporter.note(
                f"RayJob {job.id} could not be removed: {error.message}; remove it: "
                f"kubectl delete rayjob {job.id} -n {job.namespace}"
            )

    with contextlib.closing(watched), removed_at_end(clear_away if remove else lambda: None, reporter):
        result = _follow(watched, reporter, verbose=verbose, restarts=0, mlflow=mlflow)
    return _home(result, job, reporter, mlflow)


def _follow(
    watched: Watched, reporter: Reporter, *, verbose: bool, restarts: int, mlflow: str | None = None
) -> Result:
    """Follow a run to its end; what it has tracked is sent from here also when that is a bad one."""
    try:
        return follow(Follower(watched, reporter, verbose=verbose, restarts=restarts), watched, reporter)
    except (Detached, OutOfSightError):
        raise
    except (Stopped, SpRayError):
        if watched.job.tracked:
            send_journal(join(watched.job.runs, watched.job.run), reporter, failed=True, mlflow=mlflow)
        raise


def _home(result: Result, job: RunJob, reporter: Reporter, mlflow: str | None = None) -> Result:
    """Get what people open of a run that has ended well; the cluster is needed no more."""
    result = bring(result, reporter)
    if not job.tracked or result.url is None:
        return result
    return replace(
        result, mlflow_run_id=send_journal(result.url, reporter, mlflow=mlflow) or result.mlflow_run_id
    )


def stop(api: Api, namespace: str, id: str) -> Iterator[str]:
    """Stop a run, and remove its cluster where that was made for it; says what it does.

    Raises:
        ClusterNotFoundError: There is no such job.
        ClusterError: Its cluster cannot be reached.
    """
    job, body = _run_jobs.find_job(api, namespace, id)
    if job.by_operator:
        yield from _stop_rayjob(api, job)
        return
    with contextlib.closing(RayCluster(api, body)) as cluster:
        state = (
            "suspended" if body["spec"].get("suspend") else _run_jobs.ask_state(cluster.kept_dashboard(), job)
        )
        if state in ("pending", "running"):
            ray_job = _run_jobs.job_of(cluster.kept_dashboard(), job)
            ray_job.stop()
            yield from _stopped(job, ray_job.wait(lambda _: None))
        else:
            yield f"Job {id} does not run: {'its cluster is suspended' if state == 'suspended' else state}"
        yield from _removed(api, cluster, id)


def _stopped(job: RunJob, status: str) -> Iterator[str]:
    """Tell of it, here and to those who follow the run when its cluster is gone."""
    if status == "SUCCEEDED":
        yield f"Job {job.id} had ended before it was stopped: succeeded"
        return
    yield f"Stopped job {job.id}; what is done is kept in {job.runs}/{job.run}"
    if problem := keep_stop(job):
        yield _sentence(problem)


def _removed(api: Api, cluster: RayCluster, id: str) -> Iterator[str]:
    """Remove a job's cluster, where it goes with the job; what is said of that."""
    notes: list[str] = []
    remove_cluster(api, cluster, id, notes.append)
    yield from map(_sentence, notes)


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}"


def _stop_rayjob(api: Api, job: RunJob) -> Iterator[str]:
    from sp_ray_ml._on_cluster.rayjob import WatchedRayJob

    notes: list[str] = []
    with contextlib.closing(WatchedRayJob(api, job, "", notes.append, removed=True)) as watched:
        if not job.ended:
            try:
                watched.ray_job.stop()
                status = watched.ray_job.wait(lambda _: None)
            except ClusterError as error:
                # Its cluster is not there yet, or not any more: it is removed all the same.
                notes.append(error.message)
                status = "STOPPED"
            yield from _stopped(job, status)
        place = watched.remove()
        yield from notes
        yield f"Removed RayJob {job.id}{f'; the logs of its cluster are kept in {place}' if place else ''}"


def _new_job(p: Pipeline, wanted: RunCluster, api: Api, id: str) -> RunJob:
    return _run_jobs.RunJob(
        id=id, run=p.name, runs=p.runs, cluster=id if wanted.ephemeral else wanted.name,
        namespace=wanted.namespace or api.namespace, submitted=_run_jobs.now(), by=user_name(),
        tracked=p.tracking.enabled, by_operator=wanted.submit == "rayjob",
    )  # fmt: skip
