"""The cluster of a run: found or made, told of while it comes, and removed after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sp_ray_ml._on_cluster.watched import Detached, OutOfSightError
from sp_ray_ml._runs import Reporter
from sp_ray_ml.cluster._lifetime_rules import FOR_JOB, waits_in_queue
from sp_ray_ml.cluster._reporter import Reporter as ClusterReporter
from sp_ray_ml.cluster._run_jobs import ask_state, hand_on, removed_with
from sp_ray_ml.cluster.ray_cluster import RayCluster
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.errors import (
    ClusterError,
    ClusterExistsError,
    ClusterNotFoundError,
    ClusterUnhealthyError,
    SpRayError,
)

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._run_jobs import RunJob
    from sp_ray_ml.cluster._snapshot import Cause

__all__ = [
    "READY_S",
    "RunReporter",
    "find_or_make",
    "remove_cluster",
    "removed_at_end",
    "told_once",
    "who_removes",
]

READY_S = 3600.0
"""How long a cluster may take to be ready: nodes may have to be bought first."""
_QUEUED_S = 30 * 24 * 3600.0


def find_or_make(api: Api, wanted: RunCluster, job: RunJob, reporter: Reporter) -> RayCluster:
    """The cluster, ready; where it was made for this run, and is to go with it, an annotation of it says so."""
    from sp_ray_ml.cluster._create import create
    from sp_ray_ml.cluster._differs import differs
    from sp_ray_ml.cluster._kinds import RAY_CLUSTER
    from sp_ray_ml.cluster._prepare import prepare
    from sp_ray_ml.cluster._rayjob_plan import SMALLER

    told = RunReporter(reporter)
    body = None if wanted.ephemeral else api.find(RAY_CLUSTER, job.namespace, job.cluster)
    if body is not None:
        cluster = RayCluster(api, body)
        reporter.note(f"found cluster {cluster.name} in namespace {cluster.namespace}")
        if said := differs(body, wanted):
            reporter.note(said)
        waits = waits_in_queue(body)  # then it is Kueue's to say when it comes
        if body["spec"].get("suspend") and not waits:
            told.step("resuming the cluster")
            cluster.resume(await_ready=False)
        cluster.wait(timeout_s=_QUEUED_S if waits else READY_S, reporter=told)
        return cluster
    settings = wanted.settings(job.cluster)
    if wanted.lifetime == "job":
        notes = {**settings.annotations, FOR_JOB: job.id}
        settings = settings.model_copy(update={"annotations": notes})
    request = prepare(api, settings)
    if request.queue:
        request.cluster["spec"]["suspend"] = True  # until Kueue admits all of it
    try:
        # What a queue has room for is the queue's to say, when its time has come.
        created = create(api, request, with_plan=not request.queue, on_step=told.step)
    except ClusterExistsError:
        if wanted.ephemeral:
            raise
        return find_or_make(api, wanted, job, reporter)  # somebody else has made it meanwhile
    except ClusterUnhealthyError as error:  # the hint is one for `sp-ray create`
        raise ClusterUnhealthyError(error.message, where=error.where, hint=SMALLER) from None
    cluster = RayCluster(api, created.cluster, tuple(created.notes))
    reporter.note(f"made cluster {cluster.name} in namespace {cluster.namespace}")
    for note in created.notes:
        reporter.note(note)
    with removed_at_end(
        lambda: remove_cluster(api, cluster, job.id, reporter.note), reporter, only_on_error=True
    ):
        cluster.wait(timeout_s=_QUEUED_S if request.queue else READY_S, reporter=told)
    return cluster


@contextlib.contextmanager
def removed_at_end(
    remove: Callable[[], None], reporter: Reporter, *, detached: Callable[[], str | None] = lambda: None,
    only_on_error: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Remove what was made for a job after the block, unless the job in it goes on.

    Args:
        remove: Removes it, and tells so.
        reporter: Told of what is done.
        detached: What is to be said to who leaves the job to itself.
        only_on_error: The block's end is not the job's.
    """
    goes_on = only_on_error
    try:
        yield
    except Detached:
        goes_on = True
        if said := detached():
            reporter.note(said)
        raise
    except OutOfSightError:
        goes_on = True
        raise
    except (KeyboardInterrupt, SpRayError):
        goes_on = False
        raise
    except BaseException:  # a fault here is no end of the job there
        goes_on = True
        raise
    finally:
        if not goes_on:
            reporter.progress(0, 0, "removing what was made for the run")
            remove()


def remove_cluster(api: Api, cluster: RayCluster, id: str, say: Callable[[str], None]) -> None:
    """Remove a cluster that goes with a job, its logs saved before; where another run is on it, it goes with that."""

    def ask(job: RunJob) -> str:
        try:
            return ask_state(cluster.kept_dashboard(), job)
        except ClusterError:
            return "unknown"

    try:
        if removed_with(cluster.refresh().manifest) != id:
            return
        if heir := hand_on(api, cluster.manifest, id, ask):
            say(f"cluster {cluster.name} stays: job {heir.id} is on it, too, and it goes with that")
            return
        if place := cluster.delete(missing_ok=True, await_gone=False):
            say(f"removed cluster {cluster.name}; its logs are kept in {place}")
    except ClusterNotFoundError:  # somebody else has removed it
        return
    except SpRayError as error:
        say(
            f"cluster {cluster.name} could not be removed: {error.message}; remove it: "
            f"sp-ray delete cluster {cluster.name} -n {cluster.namespace}"
        )


def who_removes(api: Api, cluster: RayCluster, id: str) -> str | None:
    """Who sees to it that a cluster goes when nobody follows its job; None where it stays."""
    from sp_ray_ml.cluster._agent_manifest import agent_problem

    if removed_with(cluster.manifest) != id:
        return None
    if problem := agent_problem(api, cluster.namespace, cluster.name):
        return (
            f"nobody removes cluster {cluster.name} when the job has ended ({problem}): do it yourself, "
            f"sp-ray delete cluster {cluster.name} -n {cluster.namespace}"
        )
    return (
        f"cluster {cluster.name} is removed some minutes after the job has ended, its logs are saved before"
    )


class RunReporter(ClusterReporter):
    """Tells a run's reporter how its cluster comes."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told = ""

    def step(self, text: str) -> None:
        """What is done next."""
        self._reporter.progress(0, 0, text)

    def note(self, text: str) -> None:
        """Something the user should know."""
        self._reporter.note(text)

    def progress(self, states: Any, cause: Any) -> None:
        """The groups, and what they wait for."""
        groups = ", ".join(
            f"{each.component} {each.ready} of {each.wanted}" for each in states if each.wanted
        )
        self._reporter.progress(0, 0, f"waiting for the cluster: {groups}")
        if cause is None:
            return
        if (what := told_once(cause)) != self._told:
            self._told = what
            self._reporter.note(f"the cluster waits: {cause.message}")


def told_once(cause: Cause) -> str:
    """What tells a cause from the one before: a place in a queue each time that it changes, as all else has a time in
    its message that goes on."""
    return cause.message if cause.kind == "queue" else f"{cause.kind} {cause.component}"
