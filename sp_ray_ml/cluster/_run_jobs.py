"""Runs as jobs of clusters: found by whoever may look at the clusters, from any machine.

Ray forgets its jobs with the head, so what a job is stands in an annotation of its RayCluster, too.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml._names import near_match
from sp_ray_ml.cluster._dashboard import dashboard_of
from sp_ray_ml.cluster._jobs import Job
from sp_ray_ml.cluster._kinds import ANNOTATION, RAY_CLUSTER, RAY_JOB
from sp_ray_ml.cluster._lifetime_rules import FOR_JOB, JOB_ENDED_AT
from sp_ray_ml.cluster._lifetime_text import read_time, write_time
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesAccessError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._jobs import Dashboard

__all__ = [
    "METADATA",
    "STOPPED",
    "SUBMITTED",
    "RunJob",
    "ask_state",
    "find_job",
    "forget",
    "hand_on",
    "job_of",
    "list_run_jobs",
    "metadata_of",
    "now",
    "record",
    "record_key",
    "record_of",
    "records_of",
    "removed_with",
]

Body = dict[str, Any]

METADATA = f"{ANNOTATION}job"
"""Key of a Ray job's metadata under which its run's job stands."""
SUBMITTED = f"{ANNOTATION}submitted"
"""Likewise, when it was first started."""
STOPPED = f"{ANNOTATION}stopped"
"""Annotation of a RayJob that somebody has stopped: its status is the same where a run has failed, see `_rayjob_state`."""
_RECORD = f"{ANNOTATION}job."
"""Annotations of a RayCluster: what its jobs are."""
_KEPT = 20
"""A cluster remembers so many jobs: all annotations together may have 256 KiB."""
_AT_ONCE = 16
_SENT_IN = datetime.timedelta(minutes=10)
"""So long a run may take to be sent to its cluster."""

State = Literal[
    "queued", "pending", "running", "succeeded", "failed", "stopped", "lost", "unknown", "suspended"
]


@dataclass(frozen=True)
class RunJob:
    """A run on a cluster.

    Attributes:
        id: Its id, by which people name it.
        run: The run's name.
        runs: Where the runs' folders are.
        cluster: The cluster's name.
        namespace: The cluster's namespace.
        submitted: When it was first started (ISO 8601, UTC).
        attempt: 1, and one more for each time that it was started again.
        by: Who started it.
        tracked: Whether its journal goes to MLflow.
        by_operator: Whether it is a RayJob, which KubeRay starts; its cluster then changes.
        state: `lost` where its cluster's head has forgotten it, `unknown` where that cannot be asked.
    """

    id: str
    run: str
    runs: str
    cluster: str
    namespace: str
    submitted: str
    attempt: int = 1
    by: str = ""
    tracked: bool = True
    by_operator: bool = False
    state: State = "unknown"

    @property
    def submission(self) -> str:
        """What Ray calls this attempt."""
        return self.id if self.attempt == 1 else f"{self.id}.{self.attempt}"

    @property
    def ended(self) -> bool:
        """Whether it works no more."""
        return self.state in ("succeeded", "failed", "stopped")

    def command(self, verb: str) -> str:
        """The command line that does something with it."""
        return f"sp-ray {verb} {self.id} -n {self.namespace}"


def record(api: Api, job: RunJob, cluster: Body, *, removed_with: bool = False) -> None:
    """Write down on the cluster that it has this job; the oldest of many are dropped.

    Args:
        api: The API server.
        job: The job.
        cluster: The RayCluster.
        removed_with: The cluster was made for it, and is to go when it has ended.
    """
    before = sorted(records_of(cluster), key=lambda each: each.submitted)
    notes: dict[str, str | None] = {f"{_RECORD}{each.id}": None for each in before[: -_KEPT + 1]}
    notes[record_key(job)] = json.dumps(record_of(job))
    if removed_with:
        notes[FOR_JOB] = job.id
    api.patch(RAY_CLUSTER, job.namespace, job.cluster, {"metadata": {"annotations": notes}})


def forget(api: Api, job: RunJob) -> None:
    """Take back that a cluster has a job, which was not started after all."""
    notes = {record_key(job): None}
    api.patch(RAY_CLUSTER, job.namespace, job.cluster, {"metadata": {"annotations": notes}})


def record_key(job: RunJob) -> str:
    """The annotation that says what a job is."""
    return f"{_RECORD}{job.id}"


def record_of(job: RunJob) -> Body:
    """What it says."""
    found_out = ("cluster", "namespace", "state", "by_operator")
    return {key: value for key, value in asdict(job).items() if key not in found_out}


def metadata_of(job: RunJob) -> dict[str, str]:
    """What is said of it where Ray lists its jobs, and to its own process."""
    return {METADATA: job.id, SUBMITTED: job.submitted}


def records_of(cluster: Mapping[str, Any]) -> Iterator[RunJob]:
    """The jobs that a RayCluster, or a RayJob, remembers; what those of a cluster do now is not known."""
    meta = cluster["metadata"]
    for key, text in (meta.get("annotations") or {}).items():
        if key.startswith(_RECORD):
            try:
                said = json.loads(text)
                known = {name: said[name] for name in RunJob.__dataclass_fields__ if name in said}
                job = RunJob(**known, cluster=meta["name"], namespace=meta["namespace"])
            except (TypeError, ValueError):  # made by hand
                continue
            if cluster.get("kind") == RAY_JOB.name or "rayClusterSpec" in cluster.get("spec", {}):
                name = str((cluster.get("status") or {}).get("rayClusterName") or "")
                job = replace(job, cluster=name, state=_rayjob_state(cluster), by_operator=True)
            yield job


def removed_with(cluster: Mapping[str, Any]) -> str | None:
    """The job with whose end a cluster is to be removed; None where there is no such."""
    found = (cluster["metadata"].get("annotations") or {}).get(FOR_JOB)
    return str(found) if found else None


def hand_on(api: Api, cluster: Mapping[str, Any], id: str, ask: Callable[[RunJob], str]) -> RunJob | None:
    """Have a cluster go with another run that is still on it, rather than with a job that has ended.

    Args:
        api: The API server.
        cluster: The RayCluster.
        id: The job that has ended.
        ask: What a job does now.

    Returns:
        The job with whose end it goes; None where no other is there, and nothing was changed.
    """
    others = sorted((each for each in records_of(cluster) if each.id != id), key=lambda each: each.submitted)
    heir = next((each for each in reversed(others) if _is_on(each, ask(each))), None)
    if heir is not None:
        notes = {FOR_JOB: heir.id, JOB_ENDED_AT: None}
        api.patch(RAY_CLUSTER, heir.namespace, heir.cluster, {"metadata": {"annotations": notes}})
    return heir


def _is_on(job: RunJob, state: str) -> bool:
    # What a run takes along is sent first: Ray knows nothing of it until then.
    age = datetime.datetime.now(datetime.UTC) - read_time(job.submitted)
    return state in ("pending", "running", "unknown") or (state == "lost" and age < _SENT_IN)


def job_of(dashboard: Dashboard, job: RunJob) -> Job:
    """The job as Ray has it."""
    return Job(dashboard, job.submission)


def ask_state(dashboard: Dashboard, job: RunJob) -> State:
    """What Ray says that a job does.

    Raises:
        ClusterError: It does not answer.
    """
    try:
        info = json.loads(dashboard.request("GET", f"/api/jobs/{job.submission}"))
    except ClusterNotFoundError:
        return "lost"
    state: State = str(info["status"]).lower()  # type: ignore[assignment]
    return state


def list_run_jobs(api: Api, namespace: str | None, *, ask: bool = True) -> list[RunJob]:
    """The runs on the clusters of a namespace, or of all; the latest first.

    Args:
        api: The API server.
        namespace: The namespace; None for all.
        ask: Ask the clusters what they do now.
    """
    clusters, _ = api.list(RAY_CLUSTER, namespace)
    rayjobs = _rayjobs(api, namespace)
    if not clusters and not rayjobs and namespace:
        api.check_namespace(namespace)
    # A RayJob's clusters have its annotations; what it does is the RayJob's to say.
    names = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in rayjobs}
    with_jobs = [
        cluster for cluster in clusters if any(records_of(cluster)) and _made_by(cluster) not in names
    ]
    if not ask:
        found = [list(records_of(cluster)) for cluster in with_jobs]
    else:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sp-ray-jobs") as pool:
            found = list(pool.map(lambda cluster: _with_states(api, cluster), with_jobs))
    jobs = [job for jobs in found for job in jobs] + [job for each in rayjobs for job in records_of(each)]
    return sorted(jobs, key=lambda job: job.submitted, reverse=True)


def _made_by(cluster: Mapping[str, Any]) -> tuple[str, str]:
    """Namespace and name of the RayJob that a cluster belongs to."""
    meta = cluster["metadata"]
    owners = [each["name"] for each in meta.get("ownerReferences") or () if each["kind"] == RAY_JOB.name]
    return meta["namespace"], next(iter(owners), "")


def _rayjobs(api: Api, namespace: str | None) -> list[Body]:
    """KubeRay's RayJobs; none where they may not be listed."""
    try:
        return api.list(RAY_JOB, namespace)[0]
    except (ClusterNotFoundError, KubernetesAccessError):
        return []


def _rayjob_state(rayjob: Mapping[str, Any]) -> State:
    status = rayjob.get("status") or {}
    if rayjob["spec"].get("suspend"):
        return "queued"
    said = str(status.get("jobStatus") or "").lower()
    # A run that fails has its Ray job stopped, lest KubeRay starts it again (`_on_cluster/main.py`).
    stopped = "stopped" if STOPPED in (rayjob["metadata"].get("annotations") or {}) else "failed"
    ended = {"succeeded": "succeeded", "failed": "failed", "stopped": stopped}.get(said)
    if status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed"):
        return ended or "failed"  # type: ignore[return-value]
    return "running" if said == "running" else "pending"


def _with_states(api: Api, cluster: Body) -> list[RunJob]:
    jobs = list(records_of(cluster))
    if cluster["spec"].get("suspend"):
        return [replace(job, state="suspended") for job in jobs]
    try:
        with dashboard_of(api, cluster) as dashboard:
            return [replace(job, state=ask_state(dashboard, job)) for job in jobs]
    except ClusterError:  # it comes, it goes, or nobody may ask: the jobs are listed all the same
        return jobs


def find_job(api: Api, namespace: str, id: str) -> tuple[RunJob, Body]:
    """A run's job and its RayCluster, or its RayJob.

    Raises:
        ClusterNotFoundError: There is none; the message has those that there are.
    """
    clusters, _ = api.list(RAY_CLUSTER, namespace)
    items = [*clusters, *_rayjobs(api, namespace)]
    known = {job.id: (job, item) for item in items for job in records_of(item)}
    if id in known:
        return known[id]
    if not items:
        api.check_namespace(namespace)
    raise ClusterNotFoundError(
        f"there is no job {id}{near_match(id, known)}", where=f"namespace {namespace}",
        hint=f"See what there is: sp-ray get jobs -n {namespace}. A job goes with its cluster; the run itself is kept, its "
        "result too, in the folder that its config's `runs:` names: sp-ray get runs --runs URL",
    )  # fmt: skip


def now() -> str:
    """The time as records have it."""
    return write_time(datetime.datetime.now(datetime.UTC))
